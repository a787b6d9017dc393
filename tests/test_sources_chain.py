"""Delivery Hero's orders of two cities, and Amazon reviews, from files of the published shape to a tuned adapter."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from rectune.config import Config, load_config, parse_config
from rectune.prompt.dataset import open_dataset
from rectune.prompt.encode import EventHistories, encode_pointwise, encode_stream, sample_rows
from rectune.prompt.pieces import Pieces
from rectune.prompt.pointwise import PointwisePrompts
from rectune.prompt.stream import StreamPrompts
from rectune.train.train import train

QUIET = Console(quiet=True)
REPO = Path(__file__).parent.parent
FRESH = {"bf16": False, "report_to": "none", "max_steps": 2, "eval_steps": 2, "save_steps": 2, "baselines": "quick",
         "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 0.01,
         "max_eval_samples": 20, "max_test_samples": 20, "max_train_samples": 60}  # fmt: skip


def silent(_line: str) -> None:
    """Say nothing."""


def write_city(folder: Path, city: str, cuisines: list[str], seed: int) -> None:
    """Nine customers order two dishes at a time; some dishes are of no menu, some without cuisine or price."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    dishes = [f"{city}d{at}" for at in range(24)]
    menu = [
        f"{at},v{at % 6},{dish},{city} dish {at},{'' if at == 3 else at / 8}" for at, dish in enumerate(dishes[:-1])
    ]
    shops = [f"{at},v{at},,w,{cuisines[at % 3]}" for at in range(6)]
    orders = []
    for number in range(108):
        day, clock = number // 3, f"{draw.choice((0, 12, 23)):02d}:{draw.randrange(60):02d}:00"
        for at in draw.sample(range(24), 2):
            orders.append(f"{len(orders)},c{number % 9},w,{number},v{at % 6},{dishes[at]},0,{clock},{day} days")
    header = ",customer_id,geohash,order_id,vendor_id,product_id,day_of_week,order_time,order_day"
    files = {
        f"orders_{city}_train.txt": [header, *orders[:180], orders[7]],
        f"orders_{city}_test.txt": [header, *orders[180:]],
        f"products_{city}.txt": [",vendor_id,product_id,name,unit_price", *menu],
        f"vendors_{city}.txt": [",vendor_id,chain_id,geohash,primary_cuisine", *shops],
    }  # fmt: skip
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def two_cities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dhrd")
    write_city(folder, "sg", ["thai", "indian", ""], 1)
    write_city(folder, "se", ["sushi", "husmanskost", "pizza"], 2)
    return folder


def shipped_delivery_hero(two_cities: Path, tiny_qwen3: Path, tmp_path: Path, **values: Any) -> Config:
    """The shipped configuration on the tiny model and these cities."""
    config = load_config(REPO / "configs" / "qwen3_7b_delivery_hero_qlora.yaml")
    own = {"model_name_or_path": str(tiny_qwen3), "dataset": str(two_cities), "dataset_dir": str(tmp_path / "data"),
           "output_dir": str(tmp_path / "run"), "preprocessing_cache_dir": str(tmp_path / "cache"), "use_qlora": False,
           "cutoff_len": 1200}  # fmt: skip
    return parse_config({**config.model_dump(), **own, **FRESH, **values}, "test")


@pytest.mark.parametrize("layout", ["pointwise", "stream"])
def test_two_cities_of_orders_train_with_cuisine_and_price_in_every_prompt(
    two_cities: Path, tiny_qwen3: Path, qwen3_tokenizer: Any, tmp_path: Path, layout: str
) -> None:
    config = shipped_delivery_hero(two_cities, tiny_qwen3, tmp_path, layout=layout)
    if layout == "pointwise":
        assert (train(config, silent, QUIET) / "adapter_model.safetensors").is_file()
    data = open_dataset(config, silent)
    events = data.events
    assert {user.split(":")[0] for user in events["user_id"].to_list()} == {"sg", "se"}
    # Customers of the two cities have the same ids in their files, and are 18 nevertheless.
    assert events["user_id"].n_unique() == 18
    city = pl.col("item_id").str.split(":").list.first() == pl.col("user_id").str.split(":").list.first()
    # A negative is a dish that the customer could have ordered.
    assert events.select(city.all()).item() and events["label"].n_unique() == 2
    rows = sample_rows(events, "test", None, 0)
    histories = EventHistories(events, data.catalog, config)
    if layout == "pointwise":
        trees = encode_pointwise(PointwisePrompts(config, Pieces(qwen3_tokenizer)), histories, rows)
    else:
        prompts = StreamPrompts(config, Pieces(qwen3_tokenizer))
        trees = encode_stream(prompts, histories, events, rows, 0.25).plain()
    dishes = {row["item_id"]: row for row in data.catalog.iter_rows(named=True)}
    for index, row in enumerate(trees.rows.tolist()):
        dish = dishes[events["item_id"][row]]
        price = "" if dish["price"] is None else f"{dish['price']:.2f}"
        said = ", ".join(part for part in (dish["title"], dish["cuisine"], price) if part)
        text = qwen3_tokenizer.decode(trees.tree_tokens(index))
        asked = f"\nCandidate dish: {said}\n" in text if layout == "pointwise" else text.endswith(f"\n{said}:")
        assert asked, (said, text[-200:])
    asked_about = events.filter(pl.col("split") == "test")["item_id"].unique().to_list()
    assert any(dishes[item]["cuisine"] == "husmanskost" and dishes[item]["price"] for item in asked_about)
    assert any(not dishes[item]["cuisine"] and dishes[item]["price"] for item in asked_about)


def write_reviews(folder: Path) -> Path:
    draw = random.Random(5)
    folder.mkdir(parents=True, exist_ok=True)
    reviews = [
        {"user_id": f"AE{user}", "parent_asin": f"B{item}", "asin": f"B{item}", "rating": float(1 + (item + user) % 5),
         "timestamp": 1_588_615_855_000 + 10 * at, "title": "Ok", "text": "Fine"}
        for user in range(8) for at, item in enumerate(draw.sample(range(30), 22))
    ]  # fmt: skip
    meta = [
        {"parent_asin": f"B{item}", "title": f"Thing {item}", "main_category": "Toys", "price": item + 0.5,
         "store": "S", "categories": ["Toys", f"Kind {item % 3}"]}
        for item in range(25)
    ]  # fmt: skip
    for name, lines in (("Toys.jsonl.gz", reviews), ("meta_Toys.jsonl.gz", meta)):
        (folder / name).write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    return folder / "Toys.jsonl.gz"


def test_reviews_with_and_without_metadata_train(tiny_qwen3: Path, tmp_path: Path) -> None:
    values = {"model_name_or_path": str(tiny_qwen3), "dataset": str(write_reviews(tmp_path / "raw")), "cutoff_len": 512,
              "dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "run"), "history_len": 5,
              "preprocessing_cache_dir": str(tmp_path / "cache"), "prompt_domain": "products", "layout": "stream",
              "item_text": "{title} [{genres}], ${price:.2f}", "prompt_format": "completion"}  # fmt: skip
    said: list[str] = []
    run = train(parse_config({**values, **FRESH}, "test"), said.append, QUIET)
    assert (run / "adapter_model.safetensors").is_file()
    assert any("products: 5 of 30 that were reviewed have no metadata" in line for line in said)
    records = [json.loads(line) for line in (tmp_path / "data" / "test_raw.jsonl").read_text().splitlines()]
    texts = {text for record in records for text in [record["candidate_text"], *record["history_texts"]]}
    assert "Thing 4 [Toys, Kind 1], $4.50" in texts and any(text.startswith("item B2") for text in texts)
