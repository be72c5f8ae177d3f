"""Whatever data and model files hold: rows are read, or refused by an error of ours."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="of the extra dev")

from hypothesis import given
from hypothesis import strategies as st

from regrpo.inputs import model_folders, readers
from regrpo.inputs.examples import Plan, prompted, read_part
from regrpo.inputs.formats import FORMATS
from tests.support.chance import BY_CHANCE, damaged, json_values, read_or_refused, texts, values

LINES = b'{"question": "1+1=", "answer": "2"}\n{"question": "1+2=", "answer": "3"}\n'
TABLE = b'question;answer\n"1+1=";2\n"a ""b""";"x\ny"\n'
DOCUMENT = b'{"data": [{"question": "1+1=", "answer": 2}, {"question": "q", "answer": null}]}'
CONFIG = {"architectures": ["Gemma3ForCausalLM"], "hidden_size": 64, "model_type": "gemma3_text"}
TURNS = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]

contents = st.one_of(
    st.binary(max_size=60),
    texts.map(lambda text: text.encode(errors="replace")),
    json_values.map(lambda value: json.dumps(value).encode()),
    damaged(LINES),
    damaged(TABLE),
    damaged(DOCUMENT),
    damaged(gzip.compress(LINES, mtime=0)),
)
endings = st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.zst"])
cells = st.one_of(
    values,
    st.just(TURNS),
    st.just(json.dumps(TURNS)),
    st.lists(st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), values)),
    st.sampled_from(["1+1=", "2", "a #### 2", "4-5+6"]),
)
names = ("question", "answer", "solution", "id", "text", "summary", "metadata")


@BY_CHANCE
@given(data=contents, ending=endings)
def test_a_file_of_any_bytes_is_read_or_refused_by_its_name(
    tmp_path: Path, data: bytes, ending: str
) -> None:
    path = tmp_path / f"rows{ending}"
    path.write_bytes(data)
    with read_or_refused(str(path)):
        for place, row in readers.local_rows(path):
            assert place.startswith(str(path))
            assert isinstance(row, dict)


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
@BY_CHANCE
@given(row=st.fixed_dictionaries({}, optional=dict.fromkeys(names, cells)), chat=st.booleans())
def test_a_row_of_any_cells_becomes_an_example_or_is_refused_by_its_place(
    form: Any, row: dict[str, Any], chat: bool
) -> None:
    plan = Plan(
        seed=0, format=form.name, dev=1, sft=0.5, eval=1, prompt_style="chat" if chat else "text"
    )
    with read_or_refused("data.jsonl, line 1"):
        (example,) = read_part(iter([("data.jsonl, line 1", row)]), plan, form, "train")
        assert isinstance(example["question"], str)
        assert isinstance(form.canonical(example["question"]), str)
        json.dumps(prompted(example, plan, form)["prompt"]).encode()


@BY_CHANCE
@given(
    config=st.one_of(
        damaged(json.dumps(CONFIG).encode()),
        st.dictionaries(st.sampled_from([*CONFIG, "transformers_weights"]), json_values).map(
            lambda value: json.dumps(CONFIG | value).encode()
        ),
    ),
    index=st.one_of(
        st.none(), json_values.map(lambda value: json.dumps({"weight_map": value}).encode())
    ),
    weights=st.one_of(st.none(), st.binary(max_size=40)),
    adapter=st.one_of(st.none(), json_values.map(lambda value: json.dumps(value).encode())),
)
def test_a_model_folder_of_any_bytes_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    config: bytes,
    index: bytes | None,
    weights: bytes | None,
    adapter: bytes | None,
) -> None:
    folder = tmp_path_factory.mktemp("model")
    files = {
        "config.json": config,
        "tokenizer.json": b"{}",
        "model.safetensors.index.json": index,
        "model.safetensors": weights,
        "adapter_config.json": adapter,
    }
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    with read_or_refused(str(folder), "base_model.source"):
        model_folders.copy_model(folder, folder / "copy", "mine")
        list(model_folders.weights(folder / "copy"))
