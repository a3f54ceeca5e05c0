"""Recipes: the published numbers, changes, and what cannot work."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from ttt_docs.errors import UsageError
from ttt_docs.model.config import CONFIGS
from ttt_docs.training.recipe import load_recipe, recipe_names

DOCS = Path(__file__).resolve().parents[2] / "docs"
#: docs/method.md section 4: lr, steps and sequences a step at 8K, the same two at 32K, plain MLP width.
PUBLISHED = {
    "125m": (3e-3, 4_800, 64, 120, 32, 2048),
    "350m": (1.5e-3, 13_500, 64, 337, 32, 2816),
    "760m": (1.25e-3, 29_000, 64, 725, 32, 4096),
    "1.3b": (1e-3, 50_000, 64, 1_250, 32, 5376),
    "3b": (8e-4, 52_000, 128, 1_300, 64, 6912),
}
ARCHITECTURE = {  # blocks, dim, heads, MLP with prime, suffix
    "125m": (12, 768, 12, 1664, 3),
    "350m": (24, 1024, 16, 2304, 6),
    "760m": (24, 1536, 16, 3328, 6),
    "1.3b": (24, 2048, 32, 4352, 6),
    "3b": (32, 2560, 32, 5632, 8),
}
THETA = {8: 5e5, 16: 1e6, 32: 2e6, 64: 5e6, 128: 1e7}
RUNS = ("pretrain", ""), ("extend", "-32k"), ("full-pretrain", "")
SIZES = pytest.mark.parametrize("size", PUBLISHED)


def test_the_published_numbers_are_those_of_the_method_page():
    """The table of docs/method.md section 4, number by number, against the recipes and their architectures."""
    section = (DOCS / "method.md").read_text("utf-8").partition("## 4.")[2].partition("## 5.")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if re.match(r"\| [\d.]+[MB] ", line)]
    assert [row[0].lower() for row in rows] == list(PUBLISHED)
    for size, *cells in rows:
        numbers = [[float(n) for n in re.findall(r"[\d.]+(?:e-\d+)?", cell.replace(",", ""))] for cell in cells]
        first, longer, full = (load_recipe(f"{run}-{size.lower()}{k}") for run, k in RUNS)
        config = first.architecture()
        expected = [[config.blocks], [config.dim], [config.heads], [full.architecture().mlp_dim, config.prime_dim]]
        expected += [[config.suffix_blocks], [first.optimizer.lr], [first.steps, first.batch]]
        assert numbers[:-1] == expected and config.mlp_dim == config.prime_dim
        assert numbers[-1][:2] == [longer.steps, longer.batch]
        at_128k = load_recipe(f"extend-{size.lower()}-128k").batch
        assert numbers[-1][2:] in ([], [at_128k, 128])


def check_shared(recipe):
    o = recipe.optimizer
    assert (o.beta1, o.beta2, o.weight_decay, o.clip, o.warmup, o.final_lr) == (0.9, 0.95, 0.1, 1.0, 0.1, 1e-5)
    r = recipe.reading
    assert (r.chunk, r.inner_rule, r.inner_lr, r.inner_clip, r.sinks) == (1024, "sgd", 1.0, 1.0, 0)
    assert recipe.trains == "all" and recipe.data.tokenizer == "meta-llama/Meta-Llama-3-8B"


def check_architecture(recipe, size):
    config = recipe.architecture()
    full = recipe.name.startswith("full-")
    blocks, dim, heads, mlp, suffix = ARCHITECTURE[size]
    assert (config.blocks, config.dim, config.heads, config.kv_heads) == (blocks, dim, heads, heads)
    assert config.mlp_dim == (PUBLISHED[size][5] if full else mlp)
    assert config.suffix_blocks == (0 if full else suffix)
    assert config.window == (None if full else 8192) and config.vocab_size == 128_256
    assert config.post_norm and config.qk_norm and config.norm_eps == 1e-6 and config.tied_head
    assert config.rope_theta == (THETA[recipe.sequence // 1024] if full else 5e5)
    assert recipe.mode == ("none" if full else "meta")
    assert recipe.reading.window == (recipe.sequence if full else 8192)


@SIZES
@pytest.mark.parametrize("kind", ["", "full-"])
def test_pretraining(size, kind):
    recipe = load_recipe(f"{kind}pretrain-{size}")
    lr, steps, batch, *_ = PUBLISHED[size]
    assert (recipe.optimizer.lr, recipe.steps, recipe.batch, recipe.sequence) == (lr, steps, batch, 8192)
    assert (recipe.optimizer.inner_warmup, recipe.optimizer.inner_warmup_from) == (0.1, 0.1)
    assert recipe.model.pretrained is None
    check_shared(recipe)
    check_architecture(recipe, size)


@SIZES
@pytest.mark.parametrize("length", [16, 32, 64, 128])
@pytest.mark.parametrize("kind", ["", "full-"])
def test_extension(size, length, kind):
    recipe = load_recipe(f"{kind}extend-{size}-{length}k")
    steps, batch = PUBLISHED[size][3:5]
    assert (recipe.optimizer.lr, recipe.steps, recipe.sequence) == (4e-4, steps, length * 1024)
    assert recipe.tokens_per_step == batch * 32 * 1024 and recipe.optimizer.inner_warmup == 0
    assert recipe.model.pretrained == f"runs/{kind}pretrain-{size}/model"
    if (size, length) == ("3b", 128):
        assert recipe.batch == 16
    check_shared(recipe)
    check_architecture(recipe, size)


@SIZES
def test_the_sizes_are_those_of_the_registry_of_configs(size):
    assert load_recipe(f"pretrain-{size}").architecture().model_dump(exclude={"name"}) == CONFIGS[size].model_dump(
        exclude={"name"}
    )


def test_every_recipe_loads_under_its_own_name():
    assert len(recipe_names()) == 52 and not any(name.startswith("_") for name in recipe_names())
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_changes_bases_and_reading_back(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: pretrain-125m\nname: mine\noptimizer: {lr: 1e-3}\n")
    over = tmp_path / "over.yaml"
    over.write_text("base: mine.yaml\nname: over\nbatch: 2\n")
    recipe = load_recipe(over, ["steps=7", "data.train=[a.txt, b.txt]", "optimizer.clip=0", "reading.inner_lr=5e-1"])
    assert (recipe.optimizer.lr, recipe.batch, recipe.steps, recipe.optimizer.clip) == (1e-3, 2, 7, 0)
    assert recipe.data.train == ("a.txt", "b.txt") and recipe.reading.inner_lr == 0.5
    assert type(recipe).model_validate_json(recipe.model_dump_json()) == recipe
    assert load_recipe(over, ["data.train=a.txt"]).data.train == ("a.txt",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["optimzer.lr=1"], "unknown key optimzer, did you mean optimizer"),
        (["optimizer.lrr=1"], "unknown key optimizer.lrr, did you mean lr"),
        (["model.changes.headz=1"], "unknown key headz, did you mean heads"),
        (["reading.window=512"], r"window \(512\) must be at least the chunk \(1024\)"),
        (["sequence=1500"], r"sequence \(1500\) must be a multiple of reading.chunk \(1024\)"),
        (["model.changes.blocks=10"], "10 blocks have no last quarter"),
        (["model.changes.kv_heads=5"], "12 query heads cannot share 5"),
        (["compute.micro_batch=7"], r"batch \(64\) must be a multiple of compute.micro_batch \(7\)"),
        (["optimizer.lr=fast"], "optimizer.lr: Input should be a valid number"),
        (["optimizer.lr"], "is not key=value"),
        (["name.x=1"], "name is a value, not a section"),
        (["mode=none"], "mode none with 3 suffix blocks"),
        (["model.config=7b"], "'7b' is none of 125m"),
        (["mode=naive", "learned_inner_lr=true"], "needs a mode that updates"),
        (["steps=[1"], "the value of steps is not YAML"),
    ],
)
def test_what_cannot_work_is_named(changes, message):
    with pytest.raises(UsageError, match=message):
        load_recipe("pretrain-125m", changes)


def test_recipe_files_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="did you mean pretrain-125m"):
        load_recipe("pretrain-125")
    bad = tmp_path / "bad.yaml"
    for text, message in (("- a", "not a list of"), ("a: [", "not YAML"), ("base: bad.yaml", "its own base")):
        bad.write_text(text)
        with pytest.raises(UsageError, match=message):
            load_recipe(bad)


def test_the_tables_of_the_page_are_current():
    spec = importlib.util.spec_from_file_location("make_training", DOCS / "make_training.py")
    make_training = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_training)
    page = (DOCS / "training.md").read_text("utf-8")
    assert make_training.page(page) == page, "run: python docs/make_training.py"
