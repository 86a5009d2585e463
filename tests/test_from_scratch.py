"""The from-scratch rule of DESIGN.md, read off the syntax tree of every file in tslm/.

Names are followed through imports (`from torch import nn as n`) and plain assignments (`f = torch.nn.functional`); what
cannot be followed, such as `getattr(torch, name)`, is refused as such.
"""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tslm"
FILES = sorted(PACKAGE.rglob("*.py"))

FROM_NN = {"Parameter", "Module", "ModuleList", "ModuleDict", "Sequential", "ParameterList", "ParameterDict"}
FROM_OPTIM = {"Optimizer", "lr_scheduler.LambdaLR"}
# Ready-made forms of what this project writes itself, wherever torch or Triton keep them: torch.special.softmax,
# torch._fused_adamw_, torch.ops.aten._scaled_dot_product_flash_attention, triton.language.softmax …
READY_MADE = re.compile(
    r"softmax|(rms|layer|group|batch|instance)_?norm|scaled_dot_product|(flash|efficient|flex|cudnn)_?attention|"
    r"multi_?head_?attention|transformer_(en|de)coder|cross_entropy|nll_loss|embedding|fused_(adam|sgd|rms)|"
    r"clip_grad|_backward_data|\bglu\b|\bsilu\b", re.IGNORECASE)
# As a method of some value, where nothing says whose method it is, only what torch and Lightning have.
METHODS = re.compile(
    r"_?(log_|safe_|_safe_)?softmax|clip_grad_(norm|value)_|clip_gradients|clip_grad_by_(norm|value)|"
    r"scaled_dot_product_attention|cross_entropy_loss|nll_loss|(rms|layer|group)_norm|native_layer_norm")
SUSPICIOUS_TEXT = re.compile(r"aten::|aten\.|torch\.(ops|nn|optim|_C)\b|_scaled_dot_product|_fused_adam")
LOOKS_UP_NAMES = {"getattr", "hasattr", "methodcaller", "attrgetter", "import_module", "__import__", "vars"}


def violations(source):
    """Return what breaks the rule in a file, one line each."""
    tree = ast.parse(source)
    return sorted(set(Checker(tree).found))


class Checker(ast.NodeVisitor):
    def __init__(self, tree):
        self.found = []
        self.meaning = {}  # name -> dotted names that it may stand for
        self.documentation = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body and isinstance(node.body[0], ast.Expr)
        }
        self.collect_imports(tree)
        self.collect_aliases(tree)
        self.visit(tree)

    def complain(self, node, message):
        self.found.append(f"line {node.lineno}: {message}")

    def collect_imports(self, tree):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.check(node, alias.name, imported=True)
                    name = alias.asname or alias.name.partition(".")[0]
                    self.meaning.setdefault(name, set()).add(alias.name if alias.asname else name)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                for alias in node.names:
                    dotted = f"{node.module}.{alias.name}"
                    self.check(node, dotted, imported=True)
                    self.meaning.setdefault(alias.asname or alias.name, set()).add(dotted)

    def collect_aliases(self, tree):
        self.aliased = set()
        for _ in range(3):  # an alias of an alias of an alias
            for node in ast.walk(tree):
                if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    if len(targets) == 1 and isinstance(targets[0], ast.Name) and self.resolve(node.value):
                        self.meaning.setdefault(targets[0].id, set()).update(self.resolve(node.value))
                        self.aliased.add(id(node.value))

    def resolve(self, node):
        """Return the dotted names that an expression such as `nn.functional` may stand for; empty if it is a value."""
        if isinstance(node, ast.Name):
            return self.meaning.get(node.id, set())
        if isinstance(node, ast.Attribute):
            return {f"{base}.{node.attr}" for base in self.resolve(node.value)}
        return set()

    def check(self, node, dotted, *, imported=False):
        parts = dotted.split(".")
        if parts[0] not in ("torch", "triton"):
            return
        if parts[-1] == "*":
            self.complain(node, f"{dotted} hides names")
        elif parts[:2] == ["torch", "nn"] and len(parts) > 2:
            if parts[2] not in FROM_NN:
                self.complain(node, f"{dotted} is not among what may come from torch.nn")
        elif parts[:2] == ["torch", "optim"] and len(parts) > 2:
            rest = ".".join(parts[2:])
            is_path_to = imported and any(each.startswith(rest + ".") for each in FROM_OPTIM)
            if not is_path_to and not any(rest == each or rest.startswith(each + ".") for each in FROM_OPTIM):
                self.complain(node, f"{dotted} is not among what may come from torch.optim")
        elif {"nn", "_nn", "optim"} & set(parts[2:]) or parts[1:2] == ["_C"]:
            self.complain(node, f"{dotted} is another way to torch.nn or torch.optim")
        elif parts[1:2] == ["ops"] and parts[2:3] not in ([], ["tslm"]):
            self.complain(node, f"{dotted} calls an operator of torch's by its inner name")
        elif READY_MADE.search(dotted):
            self.complain(node, f"{dotted} is ready-made")
        elif parts[-1] == "__dict__":
            self.complain(node, f"{dotted} hides names")
        if not imported and dotted in ("torch", "torch.nn", "torch.optim", "torch.ops", "torch.optim.lr_scheduler"):
            self.complain(node, f"{dotted} is handed on as a value, so that nobody sees what is taken from it")

    def visit_Attribute(self, node):
        names = self.resolve(node)
        if not names:
            if METHODS.fullmatch(node.attr):
                self.complain(node, f".{node.attr} is ready-made")
            self.visit(node.value)
        for dotted in names:
            self.check(node, dotted, imported=id(node) in self.aliased)

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Load):
            for dotted in self.resolve(node):
                self.check(node, dotted, imported=id(node) in self.aliased)

    def visit_Call(self, node):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        if name in ("eval", "exec") and isinstance(node.func, ast.Name):
            self.complain(node, f"{name} hides names")
        if name in LOOKS_UP_NAMES:
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    if METHODS.fullmatch(argument.value):
                        self.complain(node, f"{name} looks up {argument.value!r}, which is ready-made")
                    self.check(node, argument.value)
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, str) and id(node) not in self.documentation and SUSPICIOUS_TEXT.search(node.value):
            self.complain(node, f"the text {node.value!r} names parts of torch")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_from_scratch_rule(path):
    assert violations(path.read_text()) == []


def test_from_scratch_rule_holds_in_configurations():
    for path in PACKAGE.parent.glob("configs/*.yaml"):
        assert not SUSPICIOUS_TEXT.search(path.read_text()), path


PLANTED = [
    "import torch.nn.functional as F",
    "from torch.nn import functional",
    "from torch import nn as n\nlayer = n.Linear(3, 4)",
    "from torch.nn import Linear",
    "from torch.nn import *",
    "from torch import *",
    "import torch\nx = torch.nn.functional.silu(x)",
    "import torch\nf = torch.nn\ng = f.functional\ny = g.linear(x, w)",
    "import torch as t\nt.nn.init.trunc_normal_(w)",
    "from torch.nn.utils import clip_grad_norm_",
    "from torch.nn.modules.linear import Linear",
    "from torch.nn.attention.flex_attention import flex_attention",
    "import torch\nclass A(torch.nn.RMSNorm): pass",
    "import torch\noptimizer = torch.optim.AdamW(p)",
    "from torch.optim import SGD",
    "from torch.optim.lr_scheduler import CosineAnnealingLR",
    "from torch.optim import lr_scheduler as s\ns.OneCycleLR(o)",
    "from torch.optim.adamw import adamw",
    "import torch\ntorch._fused_adamw_(p)",
    "import torch\ntorch.softmax(x, -1)",
    "import torch\ntorch.special.log_softmax(x, -1)",
    "import torch\ntorch._softmax(x, -1, False)",
    "import torch\ntorch.Tensor.softmax(x, -1)",
    "from torch import softmax as f",
    "x = x.softmax(-1)",
    "x = (a @ b).log_softmax(dim=-1)",
    "import torch\nx = torch.rms_norm(x, (3,))",
    "import torch\nx = torch.layer_norm(x, (3,))",
    "import torch\nx = torch.native_layer_norm(x, (3,))",
    "import torch\nx = torch.embedding(w, i)",
    "import torch\nx = torch._C._nn.scaled_dot_product_attention(q, k, v)",
    "import torch\nx = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)",
    "import torch\nop = torch.ops\nop.aten.mm(x, y)",
    "import torch\nx = torch.ops.aten.cross_entropy_loss(x, y)",
    "import torch\nx = getattr(torch, 'soft' + 'max')(x)",
    "import torch\nx = getattr(torch, name)(x)",
    "x = getattr(x, 'softmax')(-1)",
    "from operator import methodcaller\nf = methodcaller('log_softmax', -1)",
    "import importlib\nF = importlib.import_module('torch.nn.functional')",
    "F = __import__('torch.nn.functional')",
    "import torch\nx = torch.__dict__['softmax'](x)",
    "import torch\nx = vars(torch)['softmax'](x)",
    "import torch\nmodules = [torch.nn]",
    "from torch import nn\nLinear = getattr(nn, kind)",
    "eval('torch.softmax(x, -1)')",
    "optimizer = {'class_path': 'torch.optim.AdamW'}",
    "op = lookup('aten::_scaled_dot_product_attention')",
    "class Module(Base):\n    def step(self):\n        self.clip_gradients(optimizer, 1.0)",
    "trainer.precision_plugin.clip_grad_by_norm(optimizer, 1.0)",
    "from torch.distributed.optim import ZeroRedundancyOptimizer",
    "import torch\nx = torch.ao.nn.quantized.Linear(3, 4)",
    "import triton.language as tl\nx = tl.softmax(x)",
    "def f():\n    import torch.nn.functional as F\n    return F",
]


@pytest.mark.parametrize("source", PLANTED)
def test_from_scratch_rule_catches_planted_violations(source):
    assert violations(source) != []


INNOCENT = [
    '"""Does not use torch.nn.functional."""',
    "from torch.nn import Module, Parameter, ModuleList\nclass A(Module): pass",
    "from torch import nn\nclass A(nn.Module):\n    def f(self): return nn.Parameter(x)",
    "import torch\nclass A(torch.nn.Module): pass",
    "from torch.optim import Optimizer\nfrom torch.optim.lr_scheduler import LambdaLR",
    "from torch.optim import lr_scheduler\ns = lr_scheduler.LambdaLR(o, f)",
    "import torch\nx = torch.optim.lr_scheduler.LambdaLR(o, f)\ny = torch.optim.Optimizer.step(o)",
    "def softmax(x, dim): return x\ny = softmax(x, -1)",
    "from tslm.model.functional import softmax, scaled_dot_product_attention\ny = softmax(x, -1)",
    "from tslm.model import functional\ny = functional.softmax(x, -1)",
    "from tslm.optim import clip_gradients\nclip_gradients(p, 1.0)",
    "HOME = {'softmax': 'tslm.model'}\n__all__ = ['softmax']",
    "import torch\nx = torch.logsumexp(torch.exp(x @ y), -1).sort().values.sigmoid()",
    "import torch\ntorch._foreach_mul_(a, 2)\nf = torch.compile(f)",
    "import torch\nx = torch.ops.tslm.attention(q, k, v)",
    "self.token_embeddings = Embedding(3, 4)",
    "module = getattr(trainer, 'model')",
]


@pytest.mark.parametrize("source", INNOCENT)
def test_from_scratch_rule_leaves_our_own_parts_alone(source):
    assert violations(source) == []
