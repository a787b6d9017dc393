"""Where adapters start: the base stays the base, and PiSSA, OLoRA and LoftQ are what papers and PEFT make them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rectune.config import Config
from rectune.errors import ConfigError, ModelError, ResourceError
from rectune.model.initial import fixed_parameters, hold_start
from rectune.model.load import load_model
from rectune.model.lora import attach_adapter, load_adapter, parameter_line

Make = Callable[..., Config]
IDS = torch.arange(24).reshape(2, 12)
SMALL: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 6.0, "lora_dropout": 0.0, "lora_target": "qv"}


def base(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False).eval()


@pytest.fixture
def steep(tiny_qwen3: Path, tmp_path: Path) -> Path:
    """The tiny model with singular values of q and v that halve, so that its main directions are beyond doubt."""
    model = base(tiny_qwen3)
    draw = torch.Generator().manual_seed(5)
    for name, weight in model.named_parameters():
        if "q_proj.weight" in name or "v_proj.weight" in name:
            left, _, right = torch.linalg.svd(torch.randn(weight.shape, generator=draw), full_matrices=False)
            weight.data = left @ torch.diag(3.0 * 0.5 ** torch.arange(left.shape[1])) @ right
    model.save_pretrained(tmp_path / "steep")
    return tmp_path / "steep"


def attach(folder: Path, config: Config) -> Any:
    return attach_adapter(base(folder), config, str(folder), None)


def train(model: Any, steps: int) -> None:
    """A few steps of AdamW towards the next token of fixed text."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.0)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS.flip(0)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits.clone()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["pissa", "olora", "gaussian", "default"])
@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_an_adapter_starts_without_effect_and_training_it_leaves_the_base_alone(
    kind: str, more: dict[str, Any], tiny_config: Make, tiny_qwen3: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    untuned = logits(base(tiny_qwen3))
    model = attach(tiny_qwen3, tiny_config(**SMALL, init_lora_weights=kind, **more))
    torch.testing.assert_close(logits(model.eval()), untuned, atol=1e-4, rtol=0)
    train(model, 3)
    tuned = logits(model)
    assert float((tuned - untuned).abs().max()) > 0.05
    with model.disable_adapter():
        assert torch.equal(logits(model), untuned)
    model.save_pretrained(tmp_path / "saved")
    again = load_adapter(base(tiny_qwen3), tmp_path / "saved")
    assert torch.equal(logits(again), tuned)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_training_gives_what_peft_gives_when_it_changes_the_base_and_converts_back(
    kind: str, rslora: bool, tiny_config: Make, steep: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(1)
    peft_kind: Any = "pissa_niter_16" if kind == "pissa" else kind
    settings = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights=peft_kind, use_rslora=rslora
    )
    theirs = get_peft_model(base(steep), settings)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "initial")
    theirs.peft_config["default"].init_lora_weights = peft_kind
    train(theirs, 4)
    trained = logits(theirs)
    theirs.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    mine = attach(steep, tiny_config(**SMALL, init_lora_weights=kind, use_rslora=rslora))
    train(mine, 4)
    torch.testing.assert_close(logits(mine), trained, atol=2e-3, rtol=0)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base(steep), tmp_path / "converted")), trained)
    mine.save_pretrained(tmp_path / "mine")
    shapes = [
        {name: value.shape for name, value in load_file(tmp_path / name / "adapter_model.safetensors").items()}
        for name in ("mine", "converted")
    ]
    assert shapes[0] == shapes[1]
    assert float((trained - logits(base(steep))).abs().max()) > 0.1


def test_pissa_starts_at_the_largest_singular_values(tiny_config: Make, steep: Path) -> None:
    model = attach(steep, tiny_config(**SMALL, init_lora_weights="pissa"))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    down, up = layer.lora_A["default"].weight[:4], layer.lora_B["default"].weight[:, :4]
    values = torch.linalg.svdvals(layer.scaling["default"] * up @ down)
    # 3 halved at each of four directions; the scale stays alpha / rank, though twice the rank is saved.
    assert values[:5].tolist() == pytest.approx([3.0, 1.5, 0.75, 0.375, 0.0], abs=1e-3)
    assert layer.scaling["default"] == 6.0 / 4


def test_what_is_held_fixed_is_not_counted_as_trained(tiny_config: Make, tiny_qwen3: Path) -> None:
    lines = []
    for kind in ("pissa", "default"):
        model = attach(tiny_qwen3, tiny_config(**SMALL, init_lora_weights=kind))
        lines.append(parameter_line(model, fixed_parameters(model)).split(" of ")[0])
    assert lines[0] == lines[1]


@pytest.mark.parametrize("bits", [32, 8])
def test_where_it_started_stays_to_the_bit_whatever_the_optimiser(
    bits: int, tiny_config: Make, tmp_path: Path, qwen3_tokenizer: Any
) -> None:
    optim = pytest.importorskip("bitsandbytes").optim
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(3)
    # Matrices of at least 4,096 numbers: smaller ones keep their moments in 32 bits.
    wide = Qwen3Config(
        vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, head_dim=32,
    )  # fmt: skip
    Qwen3ForCausalLM(wide).save_pretrained(tmp_path)
    config = tiny_config(**{**SMALL, "lora_rank": 32}, init_lora_weights="pissa")
    model = attach(tmp_path, config)
    optimizer = optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, optim_bits=bits)
    hold_start(model, optimizer)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    before = [layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone()]
    for _ in range(4):
        model(input_ids=IDS, labels=IDS.flip(0)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    kinds = {optimizer.state[value]["state1"].dtype for value in after}
    assert kinds == {torch.uint8 if bits == 8 else torch.float32}
    for then, now, dim in zip(before, after, (0, 1), strict=True):
        (trained, fixed), (first, start) = now.chunk(2, dim=dim), then.chunk(2, dim=dim)
        assert torch.equal(fixed, start)
        assert not torch.equal(trained, first)


def test_more_directions_than_a_layer_has_are_refused(tiny_config: Make, tiny_qwen3: Path) -> None:
    # v goes from 32 to 16, so it has 16 directions.
    attach(tiny_qwen3, tiny_config(lora_rank=16, lora_target="qv", init_lora_weights="pissa"))
    with pytest.raises(ModelError, match="lora_rank: got 17, but v_proj has only 16 directions"):
        attach_adapter(
            base(tiny_qwen3), tiny_config(lora_rank=17, lora_target="qv", init_lora_weights="olora"), "x", None
        )


def test_loftq_starts_at_the_best_fit_to_what_four_bits_lost(tiny_config: Make, tiny_qwen3: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from peft.utils.integrations import dequantize_module_weight

    config = tiny_config(**SMALL, use_qlora=True, init_lora_weights="loftq")
    loaded = load_model(config, lambda line: None)
    plain = logits(loaded.model)
    model = attach_adapter(loaded.model, config, loaded.source, None)
    true = dict(base(tiny_qwen3).named_parameters())
    for block in (0, 1):
        layer = model.base_model.model.model.layers[block].self_attn.q_proj
        lost = true[f"model.layers.{block}.self_attn.q_proj.weight"] - dequantize_module_weight(layer.base_layer)
        added = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        # Eckart and Young: what remains of the best fit of rank 4 are the other singular values.
        values = np.linalg.svd(lost.detach().numpy(), compute_uv=False)
        remains = float((lost - added).norm().detach())
        assert remains == pytest.approx(float(np.sqrt((values[4:] ** 2).sum())), rel=1e-3)
        assert remains < 0.8 * float(lost.norm())
    with model.disable_adapter():
        assert torch.equal(logits(model.eval()), plain)
    model.save_pretrained(Path(config.output_dir))
    again = load_adapter(load_model(config, lambda line: None).model, config.output_dir)
    assert torch.equal(logits(again), logits(model))


def test_loftq_without_the_unquantised_weights_is_one_line(tiny_config: Make, tiny_qwen3: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = tiny_config(**SMALL, use_qlora=True, init_lora_weights="loftq")
    loaded = load_model(config, lambda line: None)
    with pytest.raises(ResourceError, match=r"unquantised model\.layers\.0\..*weight, which none") as caught:
        attach_adapter(loaded.model, config, str(tmp_path), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"init_lora_weights": "loftq"}, "loftq', which makes up for 4-bit quantisation; set use_qlora=true"),
        ({"init_lora_weights": "loftq", "quantization_bit": 8}, "makes up for 4-bit quantisation"),
        ({"init_lora_weights": "loftq", "use_qlora": True, "use_dora": True}, "beside use_dora: true; choose one"),
        ({"init_lora_weights": "pissa", "use_qlora": True}, "beside a base in 4 bits; .* use loftq or default"),
        ({"init_lora_weights": "olora", "quantization_bit": 8}, "beside a base in 8 bits"),
        ({"init_lora_weights": "pissa", "weight_decay": 0.1}, "weight_decay: got 0.1 beside init_lora_weights: pissa"),
        ({"init_lora_weights": "eva"}, "init_lora_weights: got 'eva', allowed: 'default', 'gaussian'"),
        ({"loraplus_lr_ratio": 0.5}, "loraplus_lr_ratio: got 0.5"),
    ],
    ids=str,
)
def test_what_cannot_be_expressed_is_refused_in_one_line(tiny_config: Make, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny_config(**keys)
