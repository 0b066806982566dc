"""Adapters train over packed weights of any format, are saved and loaded, and merged back into a file."""

from __future__ import annotations

import os
import re
import warnings
from itertools import pairwise

import pytest
import torch
import transformers
from models import glm, tiny
from oracles import REQUIRE, package_folder

import qformats
from qformats import merge_adapter, prepare_for_training
from qformats.errors import ConfigError, ShapeError
from qformats.runtime.linear import PackedLayer

try:
    import peft
except ImportError:
    if os.environ.get(REQUIRE) == "1":
        raise
    pytest.skip("peft is not installed: pip install 'qformats[peft]'", allow_module_level=True)

BASES = ["gguf:q4_0", "gptq:4bit-128g", "bitsandbytes:nf4", "glm:int4"]
IDS = torch.arange(3, 63).view(2, 30) * 31 % 2048
STEPS = 3

# PEFT asks for a property that Transformers renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def load(model, **options):
    return qformats.load_model(model, device="cpu", **options)


def adapted(model, *, targets=("q_proj", "v_proj", "down_proj"), random=False, **options):
    """The model under LoRA; with `random`, of an adapter that changes something."""
    torch.manual_seed(0)
    targets = targets if isinstance(targets, str) else list(targets)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", **options)
    under = peft.get_peft_model(model, config)
    if random:
        for name, weight in under.named_parameters():
            if "lora_B" in name or "lora_embedding" in name:
                torch.nn.init.normal_(weight, std=0.02)
    return under.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def train(model, steps: int = STEPS) -> list[float]:
    """Learn the ids by heart; gives the loss before each step."""
    model.train()
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.fixture(scope="module", params=BASES)
def base(request, tmp_path_factory):
    """The demo model in one of the formats."""
    name = "demo.gguf" if request.param.startswith("gguf") else "demo"
    target = tmp_path_factory.mktemp("base") / name
    qformats.export("demo", target, format=request.param, quantizer="rtn")
    return request.param, target


def test_train_save_load_merge(base, tmp_path):
    format, path = base
    model = prepare_for_training(load(path), gradient_checkpointing=False)
    before = {name: layer.packed() for name, layer in packed_layers(model).items()}
    assert len(before) >= 28
    under = adapted(model)
    losses = train(under)
    assert all(later < earlier for earlier, later in pairwise(losses)), losses
    assert losses[-1] < 0.8 * losses[0]
    # Only the adapter has learned.
    for name, layer in packed_layers(under.get_base_model()).items():
        own = before[name.replace(".base_layer", "")]
        assert all(torch.equal(value, own.fields[field]) for field, value in layer.packed().fields.items())
    trained = logits(under)

    under.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(path), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), trained)

    plain = merge_adapter(under, tmp_path / "plain", format="dense:f32", source=path)
    assert (plain.requantized, len(plain.tensors)) == ((), 12)
    assert max(t.error for t in plain.tensors) < 1e-6
    assert (logits(load(tmp_path / "plain")) - trained).abs().max() < 1e-4

    target = tmp_path / ("merged.gguf" if path.suffix else "merged")
    with pytest.warns(
        UserWarning, match=f"12 tensors that the adapter changes were quantized again to {format}"
    ):
        report = merge_adapter(under, target, source=path)
    assert {t.action for t in report.export.tensors} == {"copied", "quantized"}
    merged = qformats.open(target)
    assert {n: t.format for n, t in merged.tensors.items()} == {
        n: t.format for n, t in qformats.open(path).tensors.items()
    }
    check_measures(report, path, tmp_path / "plain", target)
    # What rounding took away is less than what training gave.
    untrained = (logits(load(path)) - trained).norm()
    assert (logits(load(target)) - trained).norm() < untrained


def check_measures(report, base, plain, merged) -> None:
    """The report's figures, from the values in the three models."""
    base, plain, merged = map(qformats.open, (base, plain, merged))
    for tensor in report.tensors:
        old, sum_, new = (model.read(tensor.name).double() for model in (base, plain, merged))
        added, error = (sum_ - old).norm(), (new - sum_).norm()
        assert tensor.change == pytest.approx(float(added / old.norm()), rel=1e-4)
        assert tensor.error == pytest.approx(float(error / sum_.norm()), rel=1e-4)
        assert tensor.lost == pytest.approx(float(error / added), rel=1e-4)


def packed_layers(model) -> dict[str, PackedLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLayer)}


@pytest.mark.parametrize("base", ["gptq:4bit-128g"], indirect=True)
def test_into_another_format(base, tmp_path):
    """The changed tensors are rounded once, from the sum; the others as any export does it."""
    _, path = base
    under = adapted(load(path), random=True)
    with pytest.warns(UserWarning, match="quantized again to gguf:q8_0"):
        report = merge_adapter(under, tmp_path / "m.gguf", format="gguf:q8_0", source=path)
    merge_adapter(under, tmp_path / "plain", format="dense:f32", source=path)
    plain, merged = qformats.open(tmp_path / "plain"), qformats.open(tmp_path / "m.gguf")
    assert len(report.requantized) == 12
    for tensor in report.tensors:
        expected = qformats.quantize(plain.read(tensor.name), "gguf:q8_0").dequantize()
        assert torch.equal(merged.read(tensor.name), expected)
    untouched = "model.layers.0.mlp.up_proj.weight"
    difference = merged.read(untouched) - plain.read(untouched)
    assert difference.norm() < 0.01 * plain.read(untouched).norm()


@pytest.mark.parametrize("base", ["gguf:q4_0", "glm:int4"], indirect=True)
def test_gradient_checkpointing_gives_the_same_gradients(base):
    """Over decoded weights, and over the layout of the shared kernels."""
    _, path = base

    def gradients(checkpointing: bool, arranged: bool) -> dict[str, torch.Tensor]:
        model = prepare_for_training(load(path), gradient_checkpointing=checkpointing)
        assert not any(weight.requires_grad for weight in model.parameters())
        if arranged:
            assert all(layer.arrange() for layer in packed_layers(model).values())
        under = adapted(model, random=True, targets=("q_proj", "gate_proj")).train()
        assert model.is_activation_checkpointing == checkpointing
        under(input_ids=IDS, labels=IDS).loss.backward()
        found = {name: weight.grad for name, weight in under.named_parameters() if weight.requires_grad}
        assert len(found) == 16
        return found

    plain = gradients(False, False)
    assert all(float(value.abs().max()) > 0 for value in plain.values())
    for options in ((True, False), (False, True), (True, True)):
        other = gradients(*options)
        for name, value in plain.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", ["gguf:q4_0", "bitsandbytes:nf4"], indirect=True)
def test_gradients_are_those_of_the_decoded_weights(base, tmp_path):
    """Backward decodes the weight once more: the adapter learns what it would over plain numbers."""
    _, path = base
    qformats.export(path, tmp_path / "plain", format="dense:f32")
    found = []
    for model in (path, tmp_path / "plain"):
        under = adapted(prepare_for_training(load(model), gradient_checkpointing=False), random=True).train()
        under(input_ids=IDS, labels=IDS).loss.backward()
        found.append({name: w.grad for name, w in under.named_parameters() if w.requires_grad})
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-3, atol=1e-6)


def test_transformers_trainer(base_in_folder, tmp_path):
    """The trainer asks Transformers' quantizer whether adapters may train."""
    qformats.register_with_transformers()
    package_folder("accelerate", "accelerate", "1.15.0")
    model = transformers.AutoModelForCausalLM.from_pretrained(base_in_folder, dtype=torch.float32)
    under = adapted(prepare_for_training(model), targets="all-linear")
    settings = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=3,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    data = [{"input_ids": ids, "labels": ids} for ids in IDS]
    trainer = transformers.Trainer(under, settings, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < 0.8 * losses[0]


@pytest.fixture(scope="module")
def base_in_folder(tmp_path_factory):
    """The demo model in a folder that Transformers loads by way of qformats."""
    target = tmp_path_factory.mktemp("folder") / "demo"
    qformats.export("demo", target, format="glm:int4")
    return target


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    """A model whose codes have the shape of the weights: what adds to it in place would not notice."""
    target = tmp_path_factory.mktemp("int8") / "demo"
    qformats.export("demo", target, format="glm:int8")
    return target


@pytest.fixture(scope="module", params=["glm:int8", "bitsandbytes:int8"])
def like_numbers(request, tmp_path_factory):
    """A model whose codes have the shape of the weights: PEFT can take them for numbers."""
    target = tmp_path_factory.mktemp("codes") / "demo"
    qformats.export("demo", target, format=request.param, quantizer="rtn")
    return target


@pytest.mark.parametrize("arranged", [False, True])
def test_merging_in_memory_does_no_harm(like_numbers, arranged):
    """PEFT computes with the weight; with a copy of it, its error would be silent."""
    model = load(like_numbers)
    if arranged:
        assert all(layer.arrange() for layer in packed_layers(model).values())
    before = {name: layer.packed() for name, layer in packed_layers(model).items()}
    under = adapted(model, random=True)
    for merge in (
        under.merge_and_unload,
        lambda: under.merge_and_unload(safe_merge=True),
        under.merge_adapter,
        lambda: under.merge_adapter(safe_merge=True),
    ):
        with pytest.raises(
            ConfigError, match=r"found 'data'; .* Merge adapters with qformats\.merge_adapter"
        ):
            merge()
    for name, layer in packed_layers(under.get_base_model()).items():
        own = before[name.replace(".base_layer", "")]
        assert all(torch.equal(value, own.fields[field]) for field, value in layer.packed().fields.items())


def test_unloading_gives_the_model_back(like_numbers):
    assert torch.equal(logits(adapted(load(like_numbers), random=True).unload()), logits(load(like_numbers)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"use_dora": True}, ConfigError, "plain LoRA, no DoRA or initialisation from the weight"),
        ({"init_lora_weights": "pissa"}, TypeError, "float32"),
        ({"init_lora_weights": "pissa_niter_4"}, TypeError, "float32"),
        ({"init_lora_weights": "olora"}, (ConfigError, TypeError), "int8|no DoRA"),
    ],
)
def test_adapters_that_start_from_the_weight_are_refused(like_numbers, options, error, message):
    with pytest.raises(error, match=message):
        adapted(load(like_numbers), **options)


def test_codes_can_be_looked_at(like_numbers):
    """What libraries ask a layer for goes on working; what computes does not."""
    layer = packed_layers(load(like_numbers))["model.layers.0.self_attn.q_proj"]
    codes = layer.weight
    assert (codes.device.type, codes.shape, codes.dtype) == ("cpu", (256, 256), torch.int8)
    assert not codes.requires_grad
    assert (codes.numel(), codes.nbytes) == (256 * 256, 256 * 256)
    for compute in (
        lambda: codes + 1.0,
        lambda: codes.add_(1),
        lambda: codes.clone(),
        lambda: codes.float(),
        lambda: torch.nn.functional.linear(torch.ones(1, 256), codes),
        lambda: torch.linalg.norm(codes),
        lambda: setattr(codes, "data", torch.zeros(256, 256, dtype=torch.int8)),
    ):
        with pytest.raises(ConfigError, match="weight of a packed layer: found '"):
            compute()


def test_several_adapters_and_scalings(int8, tmp_path):
    """Everything that PEFT adds up while running: two adapters, one scaled by the root of its rank, one embedding."""
    under = adapted(load(int8), random=True)
    second = peft.LoraConfig(
        r=6, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"
    )
    under.add_adapter("second", second)
    for name, weight in under.named_parameters():
        if ".second" in name:
            torch.nn.init.normal_(weight, std=0.05)
    under.base_model.set_adapter(["default", "second"])
    report = merge_adapter(under.eval(), tmp_path / "merged", format="dense:f32", source=int8)
    assert len(report.tensors) == 13
    assert (logits(load(tmp_path / "merged")) - logits(under)).abs().max() < 1e-3
    under.base_model.set_adapter("default")
    report = merge_adapter(under, tmp_path / "one", format="dense:f32", source=int8)
    assert len(report.tensors) == 12


def test_columns_first(tmp_path):
    """GPT-2 stores its matrices transposed; adapters lie on the layers as they run."""
    folder = tiny.build("gpt2", tmp_path / "gpt2")
    qformats.export(folder, tmp_path / "int8", format="glm:int8")
    ids = IDS % 100
    for model, source in ((load(tmp_path / "int8"), tmp_path / "int8"), (load(folder), folder)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PEFT corrects fan_in_fan_out
            under = adapted(model, random=True, targets=("c_attn", "c_proj"))
        target = tmp_path / f"merged-{source.name}"
        merge_adapter(under, target, format="dense:f32", source=source)
        with torch.no_grad():
            difference = load(target)(ids).logits - under(ids).logits
        assert difference.abs().max() < 1e-4


def test_slices_of_rows(int8, tmp_path, monkeypatch):
    """A weight may be cut into rows while it is written."""
    from qformats.exporting import fill

    under = adapted(load(int8), random=True)
    monkeypatch.setattr(fill, "SLICE_WEIGHTS", 5000)
    merge_adapter(under, tmp_path / "merged", format="dense:f32", source=int8, workers=2)
    assert (logits(load(tmp_path / "merged")) - logits(under)).abs().max() < 1e-4


def test_a_model_knows_its_source(int8, tmp_path):
    """Whatever it was quantized into while loading, the adapter is added to what it was loaded from."""
    for model, ran in (
        (load(int8), ()),
        (load(int8, format="gguf:q4_0"), ("gguf:q4_0",)),
        (qformats.from_pretrained(int8, device="cpu"), ()),
    ):
        assert model.qformats_source == str(int8)
        report = merge_adapter(
            adapted(model, random=True), tmp_path / "merged", format="dense:f32", force=True
        )
        assert len(report.tensors) == 12
        assert {t.source_format for t in report.tensors} == {"glm:int8"}
        assert report.ran == ran
        assert ("The adapter ran over gguf:q4_0, and was added to the weights of" in str(report)) == bool(ran)


def test_source_of_a_model_that_was_exported_first(tmp_path):
    """The temporary export is gone when the adapter is merged."""
    folder = glm.build("chatglm3-rope-ratio", tmp_path / "in")
    assert load(folder, format="gguf:q8_0").qformats_source == str(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "adapter of model.layers.0.self_attn.q_proj: found 'DoraLinearVariant'"),
        (
            {"modules_to_save": ["lm_head"]},
            "adapter of lm_head: found ModulesToSaveWrapper, a whole trained module",
        ),
        ({"bias": "all"}, "bias of the adapter 'default': found 'all'"),
    ],
)
def test_what_is_no_plain_sum_is_refused(options, message, tmp_path):
    under = adapted(load("demo"), random=True, **options)
    with pytest.raises(ConfigError, match=re.escape(message)):
        merge_adapter(under, tmp_path / "merged", source="demo")
    assert not any(tmp_path.iterdir())


def test_other_mistakes(int8, tmp_path):
    target = tmp_path / "merged"
    model = load(int8)
    with pytest.raises(ConfigError, match="model to merge: found 'LlamaForCausalLM'; expected a PeftModel"):
        merge_adapter(model, target, source=int8)
    under = adapted(model, random=True)
    unknown = transformers.AutoModelForCausalLM.from_pretrained(tiny.build("llama", tmp_path / "plain"))
    with pytest.raises(ConfigError, match="source: found None; expected the path of the base model"):
        merge_adapter(adapted(unknown, random=True), target)
    with pytest.raises(qformats.QFormatsError, match="no format 'nope'"):
        merge_adapter(under, target, source=int8, format="nope")
    other = tiny.build("llama", tmp_path / "other")
    with pytest.raises(
        ShapeError, match=r"q_proj.weight': shape \(64, 64\); expected \(256, 256\), as in the adapter"
    ):
        merge_adapter(under, target, source=other)
    third = peft.get_peft_model(load(int8), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    with pytest.raises(ConfigError, match=r"k_proj: found 'Linear'; expected LoRA on a linear layer"):
        merge_adapter(third, target, source=int8)
    assert not target.exists()


def test_an_adapter_with_nan_is_named(int8, tmp_path):
    """The weights are fine: the message is about the adapter, and nothing is written."""
    under = adapted(load(int8), random=True)
    weight = under.get_base_model().model.layers[1].self_attn.v_proj.lora_B["default"].weight
    weight.data[0, 0] = float("nan")
    for format in (None, "dense:bf16"):
        with pytest.raises(ConfigError, match=r"adapter of model\.layers\.1\.self_attn\.v_proj: found NaN"):
            merge_adapter(under, tmp_path / "merged", format=format)
    assert not any(tmp_path.iterdir())


def test_an_untrained_adapter_adds_nothing(int8, tmp_path):
    under = adapted(load(int8), targets=r".*layers\.0\.self_attn\.q_proj")
    with pytest.warns(UserWarning, match="adds nothing") as caught:
        report = merge_adapter(under, tmp_path / "merged")
    assert report.adds_nothing
    assert str(caught[0].message) == str(report)
    told = "adds nothing, as if it had not been trained; the 1 tensor that it lies on was quantized again to glm:int8"
    assert told in str(report)
    assert "times what the adapter adds" not in str(report)
    with pytest.warns(UserWarning, match=r"adds nothing, .*; merged 1 tensor into plain numbers\.$"):
        merge_adapter(under, tmp_path / "plain", format="dense:f32")


def test_a_disabled_adapter_is_refused(int8, tmp_path):
    under = adapted(load(int8), random=True)
    with (
        under.disable_adapter(),
        pytest.raises(ConfigError, match=r"adapters: found disabled.*enable_adapter_layers"),
    ):
        merge_adapter(under, tmp_path / "merged")
    assert not any(tmp_path.iterdir())
    assert len(merge_adapter(under, tmp_path / "merged", format="dense:f32").tensors) == 12


def test_containers_that_join_tensors(tmp_path):
    """A ChatGLM folder has one tensor for query, key and value: what is merged goes into an ordinary folder."""
    glm.build("chatglm2", tmp_path / "glm")
    source = tmp_path / "chatglm"
    qformats.export(tmp_path / "glm", source, format="glm:int8", container="chatglm")
    under = adapted(load(source), random=True, targets=("q_proj", "down_proj"))
    with pytest.warns(UserWarning, match="the 4 tensors .* were quantized again to glm:int8"):
        merge_adapter(under, tmp_path / "merged", source=source)
    assert qformats.open(tmp_path / "merged").container == "huggingface"
    ids = IDS % 600
    with torch.no_grad():
        difference = load(tmp_path / "merged")(ids).logits - under(ids).logits
        assert difference.norm() < 0.05 * under(ids).logits.norm()


def test_tied_layers_are_refused(tmp_path):
    """Merging into the table would change the output layer, which had no adapter."""
    folder = tiny.build("llama-tied", tmp_path / "tied")
    for module, message in (
        ("embed_tokens", "which the output layer shares"),
        ("lm_head", "an untied output"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PEFT warns of tied layers as well
            under = adapted(load(folder), random=True, targets=[module])
        with pytest.raises(ConfigError, match=message):
            merge_adapter(under, tmp_path / "merged", source=folder)
