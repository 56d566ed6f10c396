"""Models are found, refused and loaded as their users expect; every refusal says what to do."""

import json
import shutil
import socket
from contextlib import nullcontext
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantascope.errors import BadWeightsError, ConfigurationError, ModelNotFoundError, RemoteCodeError
from quantascope.jobs.data.tokens import tokenizer_fingerprint
from quantascope.jobs.models.model import ModelSource, check_model, load_model, model_fingerprint
from quantascope.jobs.models.spread import placement, require_placed
from tests.tiny import save_tiny, tiny_neox, tiny_tokenizer


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    """A copy of the tiny model that a test may break."""
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **_):
        raise AssertionError(f"network touched: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def unresolvable(monkeypatch):
    """A machine without network."""

    def fail(*_, **__):
        raise OSError("no name service")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr("urllib.request.getproxies", dict)


def edit_config(folder, name="config.json", **changes):
    path = folder / name
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "REMOVED"}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def source(folder, **options):
    return ModelSource(model=str(folder), **options)


def test_facts_are_those_of_the_model(tiny_model_folder):
    facts = check_model(source(tiny_model_folder))
    assert facts.architecture == "GPTNeoXForCausalLM"
    assert facts.model_type == "gpt_neox"
    assert facts.context_tokens == 64
    assert facts.num_parameters == sum(p.numel() for p in tiny_neox().parameters())
    assert facts.revision is None
    assert not facts.needs_remote_code


def test_context_is_found_under_an_architectures_own_name(tmp_path, tiny_model_folder):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=320, n_positions=48, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    shutil.copy(tiny_model_folder / "tokenizer.json", tmp_path)
    facts = check_model(source(tmp_path))
    assert facts.context_tokens == 48
    assert facts.architecture == "GPT2LMHeadModel"


def test_loading_needs_no_network_and_freezes_the_model(tiny_model_folder, no_network, capfd):
    loaded = load_model(source(tiny_model_folder))
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.facts == check_model(source(tiny_model_folder))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_loading_obeys_the_dtype(tiny_model_folder, dtype):
    loaded = load_model(source(tiny_model_folder, dtype=dtype))
    assert {str(p.dtype) for p in loaded.model.parameters()} == {f"torch.{dtype}"}
    assert loaded.fingerprint != load_model(source(tiny_model_folder)).fingerprint


def test_loading_leaves_logging_and_warnings_as_they_were(tiny_model_folder):
    import logging
    import warnings

    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub", "datasets", "torch")]

    def state():
        bars = transformers_logging.is_progress_bar_enabled(), are_progress_bars_disabled()
        return [each.level for each in loggers], bars, list(warnings.filters), list(logging.getLogger().handlers)

    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.INFO)
        transformers_logging.enable_progress_bar()  # whatever other tests of this process left behind
        before = state()
        load_model(source(tiny_model_folder))
        assert state() == before
        assert before[1] == (True, False)
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def test_fingerprint_is_of_names_shapes_and_bytes():
    model = tiny_neox()
    first = model_fingerprint(model)
    assert first == model_fingerprint(tiny_neox())
    assert first != model_fingerprint(tiny_neox(seed=1))
    with torch.no_grad():
        weight = model.gpt_neox.final_layer_norm.weight
        weight[3] = torch.nextafter(weight[3], torch.tensor(2.0))
    assert model_fingerprint(model) != first


def test_fingerprint_does_not_depend_on_memory_layout_or_pieces(monkeypatch):
    import quantascope.jobs.models.model as module

    model = tiny_neox(dtype="bfloat16")
    first = model_fingerprint(model)
    monkeypatch.setattr(module, "_PIECE_BYTES", 32)
    assert model_fingerprint(model) == first
    weight = model.gpt_neox.layers[0].mlp.dense_4h_to_h.weight
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    assert model_fingerprint(model) == first


def test_fingerprint_counts_tied_weights_once():
    tied = tiny_neox(tied=True)
    assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight
    first = model_fingerprint(tied)
    tied.lm_head.weight = torch.nn.Parameter(tied.lm_head.weight.detach().clone())
    assert model_fingerprint(tied) != first


def test_tokenizer_fingerprint_ignores_truncation_and_sees_the_vocabulary():
    tokenizer = tiny_tokenizer()
    first = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "a longer text"], truncation=True, max_length=2, padding=True)
    assert tokenizer_fingerprint(tokenizer) == first
    assert tokenizer_fingerprint(tiny_tokenizer(vocab_size=300)) != first
    tokenizer.add_tokens(["<more>"])
    assert tokenizer_fingerprint(tokenizer) != first


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_weights_are_named(folder, bad):
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    edit_weights(folder, lambda weights: weights[name].view(-1).__setitem__(7, bad))
    with pytest.raises(BadWeightsError, match=name):
        load_model(source(folder))


def test_weights_that_overflow_the_asked_dtype_are_named(folder):
    edit_weights(folder, lambda weights: weights["gpt_neox.embed_in.weight"].view(-1).__setitem__(0, 1e6))
    load_model(source(folder))
    with pytest.raises(BadWeightsError, match=r"embed_in.*float32"):
        load_model(source(folder, dtype="float16"))


def test_missing_weights_are_not_made_up(folder):
    edit_weights(folder, lambda weights: weights.pop("embed_out.weight"))
    with pytest.raises(BadWeightsError, match=r"lm_head\.weight.*random"):
        load_model(source(folder))


def test_weights_of_other_shapes_are_refused(folder):
    edit_config(folder, intermediate_size=96)
    with pytest.raises(BadWeightsError, match="cannot be read"):
        load_model(source(folder))


@pytest.mark.parametrize("kept_bytes", [3, 500, 20_000])
def test_torn_weights_are_refused(folder, kept_bytes):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(BadWeightsError, match="cannot be read"):
        load_model(source(folder))


def test_pickled_weights_are_refused_with_a_way_to_convert(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"pickled weights \(pytorch_model\.bin\).*save_pretrained"):
        check_model(source(folder))


def test_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="no weights"):
        check_model(source(folder))


def test_folder_without_configuration(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        check_model(source(folder))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_unreadable_configuration(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        check_model(source(folder))


def test_folder_without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match="no tokenizer"):
        check_model(source(folder))


def test_broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelNotFoundError, match=r"tokenizer of .* cannot be loaded"):
        load_model(source(folder))


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "runs/models/nowhere"])
def test_missing_folder(name):
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        check_model(ModelSource(model=name))


def test_unreachable_hub_says_so_at_once(unresolvable, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match=r"nobody/nothing-here.*cannot be reached.*spelling"):
        check_model(ModelSource(model="nobody/nothing-here"))


def test_malformed_hub_id(unresolvable):
    with pytest.raises(ModelNotFoundError, match="spelling"):
        check_model(ModelSource(model="a model with spaces"))


def test_hub_models_are_read_from_their_snapshot(folder, tmp_path, monkeypatch, unresolvable):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = folder.rename(tmp_path / commit)
    asked = []

    def download(repo, **options):
        asked.append((repo, options["revision"], "*.safetensors" in options["allow_patterns"]))
        assert options["local_files_only"]
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = load_model(ModelSource(model="some/model", revision="main"))
    assert asked == [("some/model", "main", False), ("some/model", commit, True)]
    assert loaded.facts.revision == commit
    assert loaded.facts.num_parameters is None


@pytest.mark.parametrize(("weights", "count"), [("model.safetensors", 7), ("pytorch_model.bin", None)])
def test_hub_tells_size_and_kind_of_weights_beforehand(folder, monkeypatch, weights, count):
    class Api:
        def model_info(self, name, *, revision):
            assert (name, revision) == ("some/model", folder.name)
            return SimpleNamespace(
                siblings=[SimpleNamespace(rfilename=weights)], safetensors=SimpleNamespace(total=count)
            )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr("quantascope.jobs.models.check.hub_is_reachable", lambda: True)
    if count is None:
        with pytest.raises(ModelNotFoundError, match="pickled"):
            check_model(ModelSource(model="some/model"))
    else:
        assert check_model(ModelSource(model="some/model")).num_parameters == count


def test_encoder_is_refused(folder):
    edit_config(folder, architectures=["BertForMaskedLM"], model_type="bert")
    with pytest.raises(ConfigurationError, match=r"not a causal language model.*BertForMaskedLM"):
        check_model(source(folder))


def test_body_without_head_is_refused(folder):
    edit_config(folder, architectures=["GPTNeoXModel"])
    with pytest.raises(ConfigurationError, match="GPTNeoXModel"):
        check_model(source(folder))


def test_architecture_is_guessed_from_the_type(folder):
    edit_config(folder, architectures="REMOVED")
    assert check_model(source(folder)).architecture == "GPTNeoXForCausalLM"


def test_unknown_type_is_refused(folder):
    edit_config(folder, model_type="from_the_future")
    with pytest.raises(ConfigurationError, match="from_the_future"):
        check_model(source(folder))


def test_quantised_weights_are_refused(folder):
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ConfigurationError, match="quantised"):
        check_model(source(folder))


REMOTE_CODE = """
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from pathlib import Path
(Path(__file__).parent / "ran").touch()
Path({mark!r}).touch()
class OwnConfig(GPTNeoXConfig):
    model_type = "own_neox"
class OwnModel(GPTNeoXForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def remote(folder, tmp_path, monkeypatch):
    """A model folder with code of its own, and the file that this code makes when it runs."""
    mark = tmp_path / "code_ran"
    (folder / "own.py").write_text(REMOTE_CODE.format(mark=str(mark)))
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit_config(folder, model_type="own_neox", architectures=["OwnModelForCausalLM"], auto_map=auto_map)
    # transformers renames a GPT-NeoX head while loading, but does not know that this one is a GPT-NeoX.
    edit_weights(folder, lambda weights: weights.update({"lm_head.weight": weights.pop("embed_out.weight")}))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return folder, mark


def test_remote_code_is_off(remote):
    folder, mark = remote
    with pytest.raises(RemoteCodeError, match=r"own\.OwnConfig.*trust_remote_code"):
        load_model(source(folder))
    assert not mark.exists()


def test_remote_code_in_a_folder_runs_when_allowed(remote):
    folder, mark = remote
    facts = check_model(source(folder, trust_remote_code=True))
    assert facts.needs_remote_code
    assert facts.context_tokens == 64
    assert not mark.exists()
    loaded = load_model(source(folder, trust_remote_code=True))
    assert mark.exists()
    assert type(loaded.model).__name__ == "OwnModel"


@pytest.mark.parametrize("revision", [None, "main", "0123456"])
def test_remote_code_on_the_hub_needs_a_commit(remote, monkeypatch, revision):
    folder, mark = remote
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    asked = ModelSource(model="some/model", trust_remote_code=True, revision=revision)
    with pytest.raises(RemoteCodeError, match="40 hex digits"):
        load_model(asked)
    assert not mark.exists()


def test_remote_code_from_another_repository_is_refused(remote):
    folder, mark = remote
    auto_map = {"AutoConfig": "other/repo--own.OwnConfig", "AutoModelForCausalLM": "other/repo--own.OwnModel"}
    edit_config(folder, auto_map=auto_map)
    with pytest.raises(RemoteCodeError, match="another repository"):
        load_model(source(folder, trust_remote_code=True))
    assert not mark.exists()


def test_remote_code_is_not_run_where_transformers_has_the_architecture(remote):
    folder, mark = remote
    edit_config(folder, model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"])
    edit_weights(folder, lambda weights: weights.update({"embed_out.weight": weights.pop("lm_head.weight")}))
    assert not check_model(source(folder)).needs_remote_code
    load_model(source(folder, trust_remote_code=True))
    assert not mark.exists()


def test_remote_code_in_a_tokenizer_is_refused(folder):
    edit_config(
        folder, "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map={"AutoTokenizer": ["own.T", None]}
    )
    with pytest.raises(RemoteCodeError, match=r"own\.T"):
        check_model(source(folder))


@pytest.mark.parametrize(
    ("options", "word"),
    [({"model": ""}, "model"), ({"dtype": "int8"}, "float32"), ({"device": "gpu"}, "cuda")],
)
def test_bad_options(options, word):
    with pytest.raises(ConfigurationError, match=word):
        ModelSource(**{"model": "m", **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tiny_model_folder):
    with pytest.raises(ConfigurationError, match="no GPU"):
        load_model(source(tiny_model_folder, device="cuda"))
    assert load_model(source(tiny_model_folder, device="auto")).model.device.type == "cpu"


def test_sharded_weights(tmp_path):
    tiny_neox(width=32).save_pretrained(tmp_path / "m", max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    whole = load_model(source(save_tiny(tmp_path / "whole", width=32)))
    parts = load_model(source(tmp_path / "m"))
    assert parts.fingerprint == whole.fingerprint
    assert parts.facts.num_parameters == whole.facts.num_parameters
    assert parts.tokenizer_fingerprint == whole.tokenizer_fingerprint


def test_spread_is_the_cpu_where_there_is_no_gpu(tiny_model_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    loaded = load_model(source(tiny_model_folder, device="spread"))
    assert loaded.model.device.type == "cpu"
    assert loaded.fingerprint == load_model(source(tiny_model_folder)).fingerprint


def test_what_the_gpus_cannot_hold_is_refused_before_and_after_it_is_read(tiny_model_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (20_000, 40_000))
    with pytest.raises(ConfigurationError, match=r"0\.0 GB as float32; .* weights may take nine tenths\. Give more"):
        load_model(source(tiny_model_folder, device="spread"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (10**9, 10**9))
    facts = check_model(source(tiny_model_folder))
    assert placement(source(tiny_model_folder), facts) == {"device_map": "balanced"}
    for places, is_placed in (({"": 0}, True), ({"a": 0, "b": 1}, True), ({"a": 0, "b": "cpu"}, False)):
        with nullcontext() if is_placed else pytest.raises(ConfigurationError, match="b would be offloaded"):
            require_placed(SimpleNamespace(hf_device_map=places), source(tiny_model_folder))


def test_spreading_needs_accelerate(tiny_model_folder, monkeypatch):
    monkeypatch.setattr("quantascope.jobs.models.spread.find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigurationError, match="pip install accelerate"):
        load_model(source(tiny_model_folder, device="spread"))
