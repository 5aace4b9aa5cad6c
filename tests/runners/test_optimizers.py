"""Optimizers: AdamW and Muon beside torch's own, parameter groups, and resuming to the bit."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from torch import nn

from tests.conftest import toy_yaml
from tests.killing import same, weights
from tests.runners.test_train_loop import RUN, Crash, crash_at, runner_of
from xraygpt.common.config import load, to_tree
from xraygpt.common.errors import ConfigError, InputError, TrainingError
from xraygpt.common.registry import registry
from xraygpt.experiment import Training
from xraygpt.models.base import BaseModel
from xraygpt.models.llm.small_llm import SmallLLM
from xraygpt.models.qformer_llm.qformer import QFormerConfig
from xraygpt.models.vision.image_text import TextTower
from xraygpt.runners import optimizers
from xraygpt.runners.logs import read_rows
from xraygpt.runners.zero import make_stepper

STEPS, RATE, DECAY, BETA2 = 4, 3e-3, 0.1, 0.98


class Small(BaseModel):
    """A table of words, two hidden layers, a head tied to nothing, and learned queries."""

    def __init__(self) -> None:
        super().__init__(None)
        torch.manual_seed(0)
        self.words = nn.Embedding(11, 6)
        self.inner = nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.Linear(10, 6, bias=False))
        self.query_tokens = nn.Parameter(torch.randn(1, 3, 6))
        self.kernel = nn.Conv1d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 11)

    def get_output_embeddings(self) -> nn.Module:  # as transformers' models say it
        return self.head

    def no_weight_decay(self) -> tuple[str, ...]:
        return ("query_tokens",)

    def loss(self, seed: int) -> torch.Tensor:
        ids = torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(seed))
        hidden = self.inner(self.words(ids)) + self.query_tokens.mean(dim=1)
        hidden = self.kernel(hidden.transpose(1, 2)).transpose(1, 2)
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), ids.flatten())


class Grouped(Small):
    """States groups of its own."""

    left_out = "nothing"

    def param_groups(self):
        slow = [*self.words.parameters()]
        kept = {id(p) for p in slow} | {
            id(p) for n, p in self.named_parameters() if n == self.left_out
        }
        rest = [p for p in self.parameters() if id(p) not in kept]
        return [
            {"params": slow, "lr_scale": 0.1, "weight_decay": 0.0, "name": "words"},
            {"params": rest},
        ]


def made(model: BaseModel, name: str, **settings) -> torch.optim.Optimizer:
    how = registry.get_optimizer_class(name).Config(**settings)
    return optimizers.make_optimizer(how, model, lr=RATE, weight_decay=DECAY, beta2=BETA2)


def trained(model: Small, *parts: torch.optim.Optimizer, steps=range(STEPS)) -> dict:
    for step in steps:
        model.loss(step).backward()
        for part in parts:
            part.step()
            part.zero_grad()
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_adamw_is_torchs_over_matrices_and_the_rest():
    model, twin = Small(), Small()
    ours = trained(model, made(model, "adamw"))
    named = list(twin.named_parameters())
    decayed = [p for n, p in named if p.dim() > 1 and n != "query_tokens"]
    plain = [p for n, p in named if p.dim() == 1 or n == "query_tokens"]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    theirs = trained(twin, torch.optim.AdamW(groups, lr=RATE, betas=(0.9, BETA2)))
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    other = Small()
    assert not same(ours, trained(other, made(other, "adamw", beta1=0.8)))


HIDDEN = {"inner.0.weight", "inner.2.weight"}


def test_muon_is_torchs_on_hidden_matrices_and_adamw_on_the_rest():
    model, twin = Small(), Small()
    assert {
        n for n, p in model.named_parameters() if any(p is h for h in model.hidden_matrices())
    } == HIDDEN
    ours = trained(model, made(model, "muon", momentum=0.9, ns_steps=4))
    named = dict(twin.named_parameters())
    muon = torch.optim.Muon(
        [named[n] for n in sorted(HIDDEN)],
        lr=RATE, weight_decay=DECAY, momentum=0.9, ns_steps=4, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    rest = {n: p for n, p in named.items() if n not in HIDDEN}
    decayed = [p for n, p in rest.items() if p.dim() > 1 and n != "query_tokens"]
    plain = [p for n, p in rest.items() if p.dim() == 1 or n == "query_tokens"]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    theirs = trained(twin, muon, torch.optim.AdamW(groups, lr=RATE, betas=(0.9, BETA2)))
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    for other in (
        {"ns_steps": 5},
        {"momentum": 0.95},
        {"nesterov": False},
        {"adjust_lr": "original"},
    ):
        control = Small()
        changed = trained(
            control, made(control, "muon", **{"momentum": 0.9, "ns_steps": 4, **other})
        )
        assert {n for n in ours if not torch.equal(ours[n], changed[n])} >= HIDDEN, other


def test_muons_first_step_is_orthogonal_and_as_large_as_adamws():
    """Singular values near 1 times the rate; root mean square about 0.2 of it (Liu et al.)."""
    model = Small()
    before = model.inner[0].weight.detach().clone()
    trained(model, made(model, "muon", adjust_lr="original"), steps=range(1))
    moved = (model.inner[0].weight.detach() - before * (1 - RATE * DECAY)) / RATE
    values = torch.linalg.svdvals(moved) / (10 / 6) ** 0.5
    assert values.min() > 0.6 and values.max() < 1.3
    model = Small()
    trained(model, made(model, "muon"), steps=range(1))
    moved = (model.inner[0].weight.detach() - before * (1 - RATE * DECAY)) / RATE
    assert float(moved.pow(2).mean().sqrt()) == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_state_is_taken_up_to_the_bit(name):
    whole = Small()
    straight = trained(whole, made(whole, name))
    first = Small()
    optimizer = made(first, name)
    trained(first, optimizer, steps=range(2))
    second, control = Small(), Small()
    for model in (second, control):
        model.load_state_dict(first.state_dict())
    again = made(second, name)
    again.load_state_dict(optimizer.state_dict())
    for group in again.param_groups:  # what the loop sets must reach every part
        assert group["lr"] == RATE
    assert same(straight, trained(second, again, steps=range(2, STEPS)))
    forgetful = trained(control, made(control, name), steps=range(2, STEPS))
    assert not same(straight, forgetful)


def test_learning_rates_set_after_a_load_reach_both_parts():
    model = Small()
    optimizer = made(model, "muon")
    trained(model, optimizer, steps=range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert same(before, trained(model, optimizer, steps=range(1, 2)))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_what_will_be_remembered_is_foretold(name):
    model = Small()
    optimizer = made(model, name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    told = optimizers.bytes_to_come(optimizer)
    assert not optimizer.state and same(before, dict(model.named_parameters()))
    trained(model, optimizer, steps=range(1))
    held = [t for each in optimizer.state.values() for t in each.values()]
    assert told == sum(t.nbytes for t in held)
    hidden = sum(w.numel() for w in model.hidden_matrices())
    two = 2 * sum(p.nbytes for p in model.parameters())
    assert told >= two if name == "adamw" else told < two - 4 * hidden + 100


def test_an_optimizer_that_looks_at_values_is_taken_for_adamw():
    class Looking(torch.optim.SGD):
        def step(self, closure=None):
            assert all(p.sum().item() < 1e9 for g in self.param_groups for p in g["params"])

    model = Small()
    optimizer = Looking(model.parameters(), lr=0.1)
    assert optimizers.bytes_to_come(optimizer) == 2 * sum(p.nbytes for p in model.parameters())
    assert optimizer.param_groups[0]["params"][0] is next(model.parameters())


def test_groups_that_a_model_states():
    model = Grouped()
    optimizer = made(model, "muon")
    rates = {g.get("name"): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert rates["words"] == (RATE * 0.1, 0.0) and rates[None] == (RATE, DECAY)
    model.left_out = "inner.1.bias"
    with pytest.raises(TrainingError, match=r"Grouped\.param_groups\(\) omits 1 .*inner\.1\.bias"):
        made(model, "adamw")
    model = Grouped()
    model.param_groups = lambda: [{"params": list(model.parameters()), "lr_scale": -1.0}]
    with pytest.raises(TrainingError, match=r"has lr -0\.003, which must be finite"):
        made(model, "adamw")
    with pytest.raises(TrainingError, match="nothing to train"):
        made(Small().requires_grad_(False), "adamw")


def test_without_a_hidden_matrix_muon_is_refused():
    model = Small()
    model.inner.requires_grad_(False)
    with pytest.raises(InputError, match="no hidden matrix for muon; use adamw"):
        made(model, "muon")


# --- in a run ----------------------------------------------------------------------------------


def test_the_toys_hidden_matrices(tmp_path, toy):
    model = runner_of(tmp_path, toy).model
    hidden = {id(w) for w in model.hidden_matrices()}
    of = {n: id(p) in hidden for n, p in model.trainable_parameters()}
    assert of["proj.weight"] and of["llm.model.layers.0.mlp.up_proj.weight"]
    assert any(v for n, v in of.items() if n.startswith("qformer."))
    for end in ("query_tokens", "embed_tokens.weight", "bias", "norm.weight"):
        some = [v for n, v in of.items() if n.endswith(end)]
        assert some and not any(some), end


@pytest.mark.parametrize(
    ("arch", "settings", "inside", "outside"),
    [
        (
            "language_model",
            {"llm": SmallLLM(vocab_size=300, hidden=32, layers=1, heads=2, context=64)},
            {"llm.model.layers.0.self_attn.q_proj.weight"},
            {"llm.model.embed_tokens.weight"},
        ),
        (
            "image_text",
            {"vit_model": "tiny", "text": TextTower(vocab_size=300, hidden=64, layers=1)},
            {"text.encoder.layer.0.intermediate.dense.weight"},
            {"image_proj.weight", "text_proj.weight", "head.weight", "vision.net.weight"},
        ),
        (
            "qformer_alignment",
            {"vit_model": "tiny", "qformer": QFormerConfig(layers=2, hidden=64), "vocab_size": 300},
            {"qformer.qformer.encoder.layer.0.intermediate.dense.weight"},
            {"image_proj.weight", "match_head.weight", "qformer.query_tokens"},
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_hidden_matrices_of_each_model(arch, settings, inside, outside):
    model = (
        registry.get_model_class(arch)
        .Config.from_keys(**settings)
        .build(texts=lambda: ["Clear lungs."])
    )
    named = dict(model.trainable_parameters())
    assert inside | outside <= named.keys()
    hidden = {id(w) for w in model.hidden_matrices()}
    assert all(id(named[n]) in hidden for n in inside)
    assert not any(id(named[n]) in hidden for n in outside)
    assert not any(id(p) in hidden for n, p in named.items() if "embeddings" in n or p.dim() != 2)
    groups = model.param_groups()
    decayed = {id(p) for g in groups if "weight_decay" not in g for p in g["params"]}
    assert {n for n, p in named.items() if p.dim() > 1 and id(p) not in decayed} == {
        n for n in named if n.endswith("query_tokens")
    }


def test_the_order_of_weights_is_that_of_older_checkpoints(tmp_path, toy):
    runner = runner_of(tmp_path, toy)
    named = runner.model.trainable_parameters()
    decayed = [p for n, p in named if p.dim() > 1 and not n.endswith("query_tokens")]
    plain = [p for n, p in named if p.dim() < 2 or n.endswith("query_tokens")]
    held = [group["params"] for group in runner.optimizer.param_groups]
    assert [[id(p) for p in g] for g in held] == [[id(p) for p in g] for g in (decayed, plain)]


@pytest.mark.slow
@pytest.mark.parametrize("forgets", [False, True])
def test_muon_learns_and_resumes_to_the_bit(tmp_path, toy, forgets, monkeypatch):
    muon = ("run.optimizer=muon", "run.save_every=1", "run.log_every=1")
    whole = runner_of(tmp_path, toy, *muon)
    whole.train()
    rows = read_rows(whole.run_folder / "metrics.jsonl")
    losses = [r["train/loss"] for r in rows if "train/loss" in r]
    assert losses[-1] < losses[0]
    broken = runner_of(tmp_path, toy, *muon, name="broken")
    crash_at(broken, 3, monkeypatch)
    with pytest.raises(Crash):
        broken.train()
    resume = f"run.resume_ckpt_path={tmp_path / 'broken'}"
    again = runner_of(tmp_path, toy, *muon, resume, name="broken")
    if forgets:  # the equality must be able to fail
        monkeypatch.setattr(again.stepper, "load_state", lambda state: None)
    again.train()
    assert same(weights(tmp_path / "out"), weights(tmp_path / "broken")) is not forgets


@pytest.mark.slow
def test_another_optimizer_is_not_resumed(tmp_path, toy):
    runner_of(tmp_path, toy).train()
    resume = f"run.resume_ckpt_path={tmp_path / 'out'}"
    with pytest.raises(InputError, match=r"optimizer is muon, but this run was trained with adamw"):
        runner_of(tmp_path, toy, resume, "run.optimizer=muon").train()


def test_learning_rates_are_scaled_by_group(tmp_path, toy):
    runner = runner_of(tmp_path, toy)
    runner.learning_rate.scales = [1.0, 0.25]
    lr = runner.learning_rate.apply(runner.step, [])
    assert [g["lr"] for g in runner.optimizer.param_groups] == [lr, lr * 0.25]


def test_yaml_spellings(tmp_path, toy):
    def run_of(text: str, *options: str):
        path = tmp_path / "spelt.yaml"
        path.write_text(toy_yaml(toy, RUN % (tmp_path / "out") + text))
        return load(Training, path, options).run

    assert to_tree(run_of("").optimizer)["name"] == "adamw"
    short = run_of("  optimizer: muon\n", "run.optimizer.momentum=0.8")
    long = run_of("  optimizer: {name: muon, momentum: 0.8}\n")
    assert short.optimizer == long.optimizer and short.optimizer.momentum == 0.8
    over = run_of("  optimizer: {name: adamw, eps: 1e-6}\n", "run.optimizer=muon")
    assert to_tree(over.optimizer)["name"] == "muon" and over.optimizer.eps == 1e-6
    with pytest.raises(ConfigError, match=r"line \d+: run\.optimizer\.name: .*did you mean 'muon'"):
        run_of("  optimizer: moun\n")
    with pytest.raises(ConfigError, match=r"run\.optimizer\.momentum: unknown key"):
        run_of("  optimizer: {momentum: 0.8}\n")
    with pytest.raises(ConfigError, match=r"run\.optimizer\.momentum: must be in"):
        run_of("  optimizer: {name: muon, momentum: 1.5}\n")
    assert {"adamw", "muon"} <= set(registry.list_optimizers())


def test_zero_takes_adamw_alone():
    accelerator = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    muon = registry.get_optimizer_class("muon").Config()
    config = SimpleNamespace(shard_llm=False, optimizer=muon)
    model = Small()
    with pytest.raises(InputError, match=r"run\.optimizer is muon; set it to adamw, or launch"):
        make_stepper(accelerator, model, made(model, "muon"), config)


def test_parts_keep_what_they_remember_in_one_state():
    model = Small()
    optimizer = made(model, "muon")
    trained(model, optimizer, steps=range(1))
    kinds = defaultdict(int)
    for held in optimizer.state_dict()["state"].values():
        kinds[tuple(sorted(held))] += 1
    others = sum(1 for _ in model.parameters()) - len(HIDDEN)
    assert kinds == {("momentum_buffer",): 2, ("exp_avg", "exp_avg_sq", "step"): others}


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (30, 40)])
def test_muons_update_of_long_matrices_is_torchs_up_to_rounding(shape):
    """Products of small matrices first; singular values end between 0.7 and 1.2 in any order."""
    from torch.optim._muon import _zeropower_via_newtonschulz

    from xraygpt.runners.muon import COEFFICIENTS, EPS, orthogonalize

    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(shape, generator=generator) @ torch.diag(torch.logspace(0, -3, shape[1]))

    def exact():
        x = (gradient.T if shape[0] > shape[1] else gradient).double()
        x = x / x.norm()
        a, b, c = COEFFICIENTS
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if shape[0] > shape[1] else x

    ours = orthogonalize(gradient).double()
    theirs = _zeropower_via_newtonschulz(gradient, COEFFICIENTS, 5, EPS).double()
    for computed in (ours, theirs):
        assert float((computed - exact()).norm() / exact().norm()) < 0.06
    assert torch.linalg.svdvals(ours).max() < 1.35


def test_muons_momentum_warms_up():
    model = Small()
    optimizer = made(model, "muon", momentum=0.9, momentum_start=0.5, momentum_warmup=4)
    group = optimizer.param_groups[0]
    matrices = optimizer.parts[0]
    seen = []
    for _ in range(6):
        seen.append(matrices._momentum(group))
        group["step"] += 1
    assert seen == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 0.9])
