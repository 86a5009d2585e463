"""`study accounting`: each number by hand for GPT-2 XL, and against a real step of a small model."""

import json
from dataclasses import replace

import pytest

from tests.conftest import ROOT
from tslm.__main__ import main
from tslm.model import TransformerConfig, TransformerLM
from tslm.studies.accounting import account, evaluate, gpt2, shown
from tslm.studies.accounting_measured import measure
from tslm.studies.accounting_page import group_shares

V, T, L, D, H, F = 50_257, 1_024, 48, 1_600, 25, 6_400
SMALL = TransformerConfig(vocab_size=97, context_length=24, d_model=32, num_layers=3, num_heads=4, d_ff=80)
XL = {form: account(gpt2("xl"), form) for form in ("swiglu", "silu")}


@pytest.mark.parametrize(("form", "matrices", "expected"), [("swiglu", 3, 2_127_057_600), ("silu", 2, 1_635_537_600)])
def test_the_parameters_of_xl_and_their_memory(form, matrices, expected):
    # Two embeddings of 50,257 · 1,600 = 80,411,200. A block has 4 · 1,600² = 10,240,000 in attention, 10,240,000 for
    # each matrix of the feed-forward layer, and 2 · 1,600 = 3,200 gains. The final RMSNorm has 1,600 gains.
    by_hand = 2 * 80_411_200 + 48 * (10_240_000 + matrices * 10_240_000 + 3_200) + 1_600
    assert XL[form].num_parameters == by_hand == expected
    assert XL[form].state_bytes == 16 * expected  # weights 4, gradients 4, m 4 and v 4 bytes


def test_the_activations_of_xl_and_the_largest_batch():
    # Floats of 1,024 · 1,600 = 1,638,400 in a (T, D), 6,553,600 in a (T, F), 25 · 1,024² = 26,214,400 in (H, T, T).
    # A block: RMSNorms 2, QKV 3, weighted sum 1, output 1, W₂ 1 of (T, D); two (H, T, T); W₁ and SiLU of (T, F).
    block = 8 * 1_638_400 + 2 * 26_214_400 + 2 * 6_553_600
    floats = 48 * block + 1_638_400 + 2 * 1_024 * 50_257
    assert XL["silu"].sequence_bytes == 4 * floats == 15_517_753_344
    assert XL["swiglu"].sequence_bytes == 4 * (floats + 48 * 2 * 6_553_600) == 18_034_335_744  # W₃ and the product
    # (80 - 26.17) / 15.52 = 3.47 and (80 - 34.03) / 18.03 = 2.55
    assert (XL["silu"].largest_batch(80e9), XL["swiglu"].largest_batch(80e9)) == (3, 2)
    assert XL["silu"].memory_bytes(3) == 3 * 15_517_753_344 + 26_168_601_600
    assert XL["silu"].memory_bytes(3) <= 80e9 < XL["silu"].memory_bytes(4)
    assert XL["silu"].largest_batch(20e9) == 0


def test_the_operations_of_a_forward_pass_of_xl():
    # A block: four projections 4 · 2TD², two products 2 · 2T²D, and 2TDF for each matrix.
    projections, products, matrix = 4 * 2 * T * D * D, 2 * 2 * T * T * D, 2 * T * D * F
    assert XL["swiglu"].forward_flops == L * (projections + products + 3 * matrix) + 2 * T * D * V == 4_513_336_524_800
    assert XL["silu"].forward_flops == L * (projections + products + 2 * matrix) + 2 * T * D * V == 3_506_703_564_800
    shares = group_shares(XL["silu"])
    assert list(shares.values()) == pytest.approx([0.2871, 0.0919, 0.5741, 0.0470], abs=1e-4)
    assert sum(shares.values()) == pytest.approx(1)


def test_the_operations_at_context_16384():
    long = account(gpt2("xl", context_length=16_384), "swiglu")
    # 16 times the products with weights, 256 times those with T².
    products = L * 4 * T * T * D
    assert long.forward_flops == 16 * (XL["swiglu"].forward_flops - products) + 256 * products == 149_522_795_724_800
    assert group_shares(long)["Q Kᵀ, sum"] == pytest.approx(0.5515, abs=1e-4)


def test_a_step_of_adamw():
    # m: two products, a sum. v: g², two products, a sum. θ: root, + ε, quotient, · α_t, difference. Decay: · αλ, -.
    assert XL["swiglu"].adamw_flops == (3 + 4 + 5 + 2) * 2_127_057_600 == 29_778_806_400


def test_the_days_on_an_a100_and_the_hours_on_an_h100():
    # 3 · 3.5067e12 · 1,024 · 400,000 = 4.3090e21 operations at 9.75e12 per second
    days = XL["silu"].seconds(400_000, 1024, 19.5e12, 0.5) / 86_400
    assert days == pytest.approx(3 * 3_506_703_564_800 * 1024 * 400_000 / 9.75e12 / 86_400)
    assert days == pytest.approx(5115.2, abs=0.1)
    assert XL["swiglu"].seconds(400_000, 1024, 19.5e12, 0.5) / 86_400 == pytest.approx(6583.6, abs=0.1)
    newer = account(gpt2("xl", d_ff=4_288))
    by_hand = L * (4 * 2 * T * D * D + 4 * T * T * D + 3 * 2 * T * D * 4_288) + 2 * T * D * V
    assert newer.forward_flops == by_hand
    hours = 3 * by_hand * 1024 * 400_000 / (0.5 * 495e12) / 3600
    assert newer.seconds(400_000, 1024, 495e12, 0.5) / 3600 == pytest.approx(hours)
    assert hours == pytest.approx(4850.1, abs=0.1)


@pytest.mark.parametrize("changes", [
    {}, {"ffn": "silu"}, {"norm": "post"}, {"norm": "none"}, {"tie_embeddings": True}, {"qk_norm": True},
])
def test_counts_equal_those_of_a_real_step(changes):
    config = replace(SMALL, **changes)
    each = account(config)
    assert each.num_parameters == TransformerLM(config).num_parameters() == config.num_parameters
    measured = measure(each)
    assert measured.forward_flops == each.forward_flops
    assert measured.backward_flops == 2 * each.forward_flops
    assert measured.parameter_bytes == measured.gradient_bytes == 4 * each.num_parameters
    assert measured.optimizer_bytes == 8 * each.num_parameters
    assert measured.activation_bytes > each.sequence_bytes  # autograd keeps more than the list has


def test_a_step_that_does_not_fit_is_counted_but_not_taken():
    measured = measure(XL["silu"])
    assert measured.forward_flops == XL["silu"].forward_flops
    assert measured.parameter_bytes is None
    assert measured.reason


def test_a_printed_formula_is_the_one_that_is_evaluated():
    assert evaluate("2 L D D", {"L": 3, "D": 10}) == 600
    assert shown("2 L D D") == "2·L·D²"


def test_study_accounting_prints_the_page_of_a_size(capsys):
    assert main(["study", "accounting"]) == 0
    page = capsys.readouterr().out
    for part in ("2,127,057,600", "1,635,537,600", "15.52·batch + 26.17 GB", "4,513,336,524,800", "5,115.2",
                 "29,778,806,400", "4,850.1", "149,522,795,724,800"):
        assert part in page
    assert max(map(len, page.splitlines())) <= 100


def test_study_accounting_answers_for_a_configuration_as_json(capsys):
    assert main(["study", "accounting", "--config", str(ROOT / "configs" / "text.yaml"), "--json", "true"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"]["d_model"] == 256
    assert answer["training"]["batch_size"] == 16
    assert answer["training"]["steps"] == 489  # 2,000,000 tokens in steps of 4,096
    assert answer["measured"]["forward_flops"] == answer["swiglu"]["forward_flops_total"]
    assert answer["measured"]["optimizer_bytes"] == answer["swiglu"]["optimizer_bytes"]


@pytest.mark.parametrize(("words", "sentence"), [
    (["--size", "huge"], "size is 'huge', but it must be one of small, medium, large, xl"),
    (["--batch_size", "0"], "batch_size is 0, but it must be 1 or more"),
    (["--memory_gb", "0"], "memory_gb is 0"),
    (["--utilisation", "2"], "utilisation is 2"),
    (["--tflops", "[]"], "tflops is []"),
    (["--d_ff", "0"], "d_ff is 0"),
    (["--config", "a.yaml", "--size", "small"], "size is 'small' and config is 'a.yaml', but one model is counted"),
    (["--config", "nowhere.yaml"], "configuration file nowhere.yaml does not exist"),
])
def test_study_accounting_answers_a_mistake_in_one_sentence(words, sentence, capsys):
    assert main(["study", "accounting", *words]) == 2
    assert capsys.readouterr().err.startswith(f"tslm: {sentence}")
