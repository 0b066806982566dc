"""`generate` on a CUDA device: one launch a token, and the same text as Transformers' own loop writes."""

import threading
import warnings

import pytest
import torch

import qformats

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
PROMPT = [5, 17, 90, 3, 3, 44, 61, 8, 95]


@pytest.fixture
def model(exported):
    return qformats.load_model(exported("llama", "gguf:q4_0"), device="cuda", dtype="f32")


def written(model, ids, *, own=False, **settings):
    given = torch.tensor(ids, device=model.device)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, **settings}
    settings.setdefault("attention_mask", torch.ones_like(given))
    generate = (lambda *a, **k: type(model).generate(model, *a, **k)) if own else model.generate
    return generate(given, **settings)


def captured(model):
    from qformats.runtime.decoding import loop

    return model in loop._sessions


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gpt2"])
def test_the_same_tokens_as_transformers_own_loop(name, exported):
    model = qformats.load_model(exported(name, "gguf:q8_0"), device="cuda", dtype="f32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = written(model, [PROMPT])
    assert captured(model)
    assert torch.equal(found, written(model, [PROMPT], own=True))
    # Another prompt, with the same graph.
    assert torch.equal(written(model, [PROMPT[:4]]), written(model, [PROMPT[:4]], own=True))


def test_batches_with_padding(model):
    ids, mask = [PROMPT, [0, 0, 0, *PROMPT[:6]]], [[1] * 9, [0] * 3 + [1] * 6]
    mask = torch.tensor(mask, device="cuda")
    found = written(model, ids, attention_mask=mask)
    assert captured(model)
    assert torch.equal(found, written(model, ids, own=True, attention_mask=mask))


def test_sampling_takes_the_same_random_numbers(model):
    drawn = []
    for own in (False, True):
        torch.manual_seed(3)
        drawn.append(written(model, [PROMPT], own=own, do_sample=True, top_k=20, repetition_penalty=1.1))
    assert torch.equal(*drawn)


def test_ends_where_a_text_ends(model):
    whole = written(model, [PROMPT])[0].tolist()
    end = whole[len(PROMPT) + 3]
    found = written(model, [PROMPT], eos_token_id=end)[0].tolist()
    assert found == whole[: whole.index(end, len(PROMPT)) + 1]


def test_two_models_in_turn(model, exported):
    other = qformats.load_model(exported("qwen2", "gptq:4bit-64g"), device="cuda", dtype="f32")
    for _ in range(2):
        for each in (model, other):
            assert torch.equal(written(each, [PROMPT]), written(each, [PROMPT], own=True))


def test_two_threads_with_one_model(model):
    expected = written(model, [PROMPT], own=True)
    found = []
    threads = [threading.Thread(target=lambda: found.append(written(model, [PROMPT]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(each, expected) for each in found)


def test_adapters_that_come_go_and_change(model):
    pytest.importorskip(
        "bitsandbytes.nn", reason="PEFT takes the tests' own folder bitsandbytes for the package"
    )
    peft = pytest.importorskip("peft", reason="adapters need PEFT")
    before = written(model, [PROMPT])
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4)).eval()
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            value.data.normal_(generator=torch.Generator("cuda").manual_seed(1), std=0.5)
    inner = adapted.get_base_model()
    with_adapter = written(inner, [PROMPT])
    assert torch.equal(with_adapter, written(inner, [PROMPT], own=True))
    assert not torch.equal(with_adapter, before)
    with adapted.disable_adapter():
        assert torch.equal(written(inner, [PROMPT]), before)
    assert torch.equal(written(inner, [PROMPT]), with_adapter)


def test_what_listens_to_a_model_is_heard(model):
    heard = []
    model.model.layers[0].register_forward_hook(lambda *_: heard.append(1))
    written(model, [PROMPT])
    assert len(heard) == 12


def test_says_why_it_computes_token_by_token(exported, monkeypatch):
    from qformats.runtime.decoding import loop, session

    model = qformats.load_model(exported("llama", "gguf:q4_0"), device="cuda")
    # As if the captured step gave other numbers.
    monkeypatch.setattr(session, "_AGREE", -1)
    with pytest.warns(UserWarning, match="one operation at a time, because captured, its logits are"):
        found = written(model, [PROMPT])
    assert torch.equal(found, written(model, [PROMPT], own=True))
    assert "logits" in loop._unfit[model]


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe"])
def test_experts_are_chosen_on_the_device(name, tmp_path):
    from models import moe

    from qformats.runtime.experts import QuantExperts

    qformats.export(moe.build(name, tmp_path / "model"), tmp_path / "packed", format="glm:int8")
    model = qformats.load_model(tmp_path / "packed", device="cuda", dtype="f32")
    assert all(module._stacks for module in model.modules() if isinstance(module, QuantExperts))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = written(model, [PROMPT])
    assert captured(model)
    assert torch.equal(found, written(model, [PROMPT], own=True))
