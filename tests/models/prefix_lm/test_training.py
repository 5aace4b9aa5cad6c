"""Training of prefix language models: what is learned, saved, resumed and exported."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests import processes
from tests.conftest import REPO
from tests.killing import finish, killed_at, same, weights
from tests.models.prefix_lm.toy import (
    collate,
    evaluation,
    runner,
    study,
    tiny_model,
    tree,
    write_toy,
    write_yaml,
)
from xraygpt.common.errors import ConfigError, TrainingError, WeightsError
from xraygpt.experiment import build_evaluator
from xraygpt.models.capabilities import ExportSettings
from xraygpt.models.llm.small_llm import SmallLLM, new_llm, new_tokenizer
from xraygpt.models.prefix_lm.decoder import DecoderSize
from xraygpt.processors.plain import PlainPixels
from xraygpt.runners.logs import read_rows

SETTINGS = ExportSettings(processor=PlainPixels(PlainPixels.Config()))


def losses(folder, name="train/loss"):
    (path,) = folder.glob("*/metrics.jsonl")
    return [r[name] for r in read_rows(path) if name in r]


def test_depth_sets_the_size_and_the_learning_rates():
    """echovlm's 27.2 million weights at depth 8, of which the learning rates are nanochat's."""
    size = DecoderSize()
    assert (size.hidden, size.num_heads) == (512, 4)
    assert size.num_parameters == 27_213_824
    small = DecoderSize(depth=2)
    assert (small.hidden, small.num_heads) == (128, 1)
    model = tiny_model()
    groups = {g["name"]: g.get("lr_scale", 1.0) for g in model.param_groups()}
    assert groups["token embeddings"] == pytest.approx(10 * (768 / 64) ** 0.5)
    assert groups["output layer"] == pytest.approx(0.2 * (768 / 64) ** 0.5)
    hidden = {id(p) for p in model.hidden_matrices()}
    names = {n for n, p in model.named_parameters() if id(p) in hidden}
    assert len(names) == 2 * 6
    assert not any(n.startswith("projector") or "embed" in n or "head" in n for n in names)


def test_a_new_decoder_predicts_every_token_equally():
    model = tiny_model(random_outputs=False)
    output = model(collate(model, [study(1, 2)]))
    uniform = np.log(len(model.tokenizer))
    assert float(output.loss) == pytest.approx(uniform * int(output.num_targets), rel=1e-6)


def test_bits_per_byte_count_the_text_and_not_its_end():
    model = tiny_model()
    sample = study(1, 2)
    sample["turns"][1]["text"] = "Größe: 4 µm"
    output = model(collate(model, [sample]))
    assert int(output.num_bytes) == len("Größe: 4 µm".encode())
    logits = model(collate(model, [sample]), return_logits=True).logits
    batch = collate(model, [sample])
    end = float(-logits[0, -2].log_softmax(-1)[batch["labels"][0, -1]])
    assert float(output.byte_loss) == pytest.approx(float(output.row_loss) - end, rel=1e-5)
    assert model.train()(collate(model, [sample])).num_bytes is None


def test_a_model_that_learns_to_look_answers_right_and_not_with_another_study(tmp_path):
    corpus = write_toy(tmp_path / "corpus", 32)
    config = tree(
        corpus, tmp_path / "run", run__max_steps=40, run__batch_size_train=8,
        run__best_metric="val/bits_per_byte", run__eval_every=20,
        run__lr_sched="reduce_on_plateau_lr",
    )  # fmt: skip
    done = runner(tmp_path / "run.yaml", config)
    last = done.train()
    assert last["val/bits_per_byte"] < 0.1 < last["val/image_gap"]
    assert done.progress.best == min(v for _, v in done.progress.val_losses)
    assert min(losses(tmp_path / "run", "val/bits_per_byte")) == done.progress.best
    result = build_evaluator(evaluation(tmp_path / "e.yaml", config, done.run_folder)).run()
    scores = {(s["name"], s["condition"]): s["value"] for s in result["scores"]}
    rouge = next(n for n, _ in scores if n.startswith("COCO ROUGE"))
    assert scores[rouge, "true"] == pytest.approx(1.0)
    assert scores[rouge, "shuffled"] < 0.9
    assert scores[rouge, "nearest"] == pytest.approx(1.0)  # from the embeddings themselves
    rates = {r["name"]: r["value"] for r in result["losses"]}
    assert rates["bits_per_byte_true"] == pytest.approx(last["val/bits_per_byte"], rel=0.01)
    assert rates["bits_per_byte_shuffled"] > 10 * rates["bits_per_byte_true"]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_bit(tmp_path):
    """With Muon's momentum, which is still warming up, dropout, noise and studies without views."""
    corpus = write_toy(tmp_path / "corpus", 12, without=4)
    outputs = {}
    for part in ("straight", "killed"):
        config = tree(
            corpus, tmp_path / part, run__max_steps=6, run__save_every=2,
            run__resume_ckpt_path="auto", model__prefix__noise=0.3,
            run__optimizer__momentum_start=0.8, run__optimizer__momentum_warmup=5,
        )  # fmt: skip
        path = write_yaml(tmp_path / f"{part}.yaml", config)
        command = [sys.executable, str(REPO / "train.py"), "--cfg-path", str(path)]
        env = dict(processes.os.environ)
        if part == "killed":
            killed_at("gradients", 4, command, env)
        finish(command, env)
        outputs[part] = weights(tmp_path / part)
    assert same(outputs["straight"], outputs["killed"])


@pytest.mark.slow
def test_two_processes_are_one_even_if_one_has_no_embedding(tmp_path):
    """With AdamW to 1e-5; Muon's products in bfloat16 enlarge the rounding of sums."""
    corpus = write_toy(tmp_path / "corpus", 6, without=10)
    for optimizer, tolerance in (("adamw", 1e-5), ("muon", 1e-3)):
        found = {}
        for world, rows in ((1, 2), (2, 1)):
            output = tmp_path / f"{optimizer}{world}"
            config = tree(
                corpus, output, run__batch_size_train=rows, run__max_steps=8,
                model__llm__size__dropout=0.0, run__optimizer=optimizer, run__init_lr=3e-3,
            )  # fmt: skip
            path = write_yaml(tmp_path / f"{output.name}.yaml", config)
            line = [sys.executable, str(REPO / "train.py"), "--cfg-path", str(path)]
            if world == 1:
                finish(line, dict(processes.os.environ))
            else:
                processes.run_world(world, line, env=dict(processes.os.environ), timeout=600)
            found[world] = losses(output)
        assert len(found[1]) == len(found[2]) == 8
        assert np.allclose(found[1], found[2], rtol=tolerance, atol=0), optimizer


def test_a_pretrained_llm_reads_the_same_studies(tmp_path):
    """Transfer by YAML: a Llama with LoRA, whose checkpoint holds only what was trained."""
    tokenizer = new_tokenizer(["The chamber is small.", "The chamber is large."], 270)
    llm = new_llm(SmallLLM(hidden=32, layers=2, heads=2, context=96), tokenizer, 0)
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    corpus = write_toy(tmp_path / "corpus", 12)
    config = tree(corpus, tmp_path / "run", run__optimizer="adamw", run__init_lr=3e-3)
    config["model"]["llm"] = {
        "source": str(tmp_path / "llm"), "freeze": True, "lora": {"r": 4},
    }  # fmt: skip
    config["model"]["text"] = {"prompt_template": "study_text"}
    done = runner(tmp_path / "run.yaml", config)
    done.train()
    state = load_file(next(done.run_folder.glob("checkpoints/*/model.safetensors")))
    assert all("lora_" in n or n.startswith(("projector.", "average_")) for n in state)
    model = done.model.eval()
    with torch.no_grad():
        first = model(collate(model, [study(2, 4)])).loss
        turned = model(collate(model, [study(2, 4, [3, 1, 0, 2])])).loss
    assert float(first) == pytest.approx(float(turned), rel=1e-6)
    new_llm(SmallLLM(hidden=32, layers=2, heads=2, context=96), tokenizer, 1).save_pretrained(
        tmp_path / "llm"
    )
    config["model"]["ckpt"] = str(done.run_folder)  # its LoRA belongs to the LLM of before
    with pytest.raises(WeightsError, match="was trained with another LLM"):
        runner(tmp_path / "a.yaml", config)
    config["model"]["text"] = {"prompt_template": "none"}  # the last embedding would predict
    with pytest.raises(ConfigError, match="must write something after a study"):
        runner(tmp_path / "b.yaml", config)
    config["model"]["text"] = {}
    with pytest.raises(ConfigError, match="study_report needs the tokenizer of a new decoder"):
        runner(tmp_path / "c.yaml", config)
    with pytest.raises(WeightsError, match="--merge-lora"):
        model.export("transformers", tmp_path / "out", SETTINGS)


def test_an_export_opens_in_transformers_and_its_example_runs(tmp_path, monkeypatch):
    import transformers

    model = tiny_model()
    model.export("transformers", tmp_path / "out", SETTINGS)
    llm, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    batch = collate(model, [study(1, 1)])
    with torch.no_grad():
        theirs = llm(inputs_embeds=model.embed(batch)).logits
        ours = model(batch, return_logits=True).logits
    assert torch.allclose(theirs, ours, atol=1e-5)
    card = (tmp_path / "out/README.md").read_text()
    assert "Research use only" in card
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "out")
    exec(compile(code, "README.md", "exec"), {})


def test_bits_per_byte_need_a_byte_level_tokenizer(tmp_path):
    corpus = write_toy(tmp_path / "corpus", 12)
    config = tree(corpus, tmp_path / "run", run__best_metric="val/bits_per_byte", run__eval_every=2)
    done = runner(tmp_path / "run.yaml", config)
    done.model._token_bytes = (None,)
    with pytest.raises(TrainingError, match="best_metric: val/bits_per_byte cannot be computed"):
        done.train()
