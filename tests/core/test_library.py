"""What is read from a library's source is what its classes say."""

import dataclasses

import pytest
from trl import GRPOConfig, SFTConfig

from regrpo.core.library import library_class, library_defaults, library_fields

LIBRARIES = {
    "trl.trainer.grpo_config:GRPOConfig": GRPOConfig,
    "trl.trainer.sft_config:SFTConfig": SFTConfig,
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_fields_read_from_source_are_those_of_the_class(library: str) -> None:
    real = {field.name for field in dataclasses.fields(LIBRARIES[library])}
    assert real <= set(library_fields(library))
    assert library_class(library) is LIBRARIES[library]


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_defaults_read_from_source_are_those_of_the_class(library: str) -> None:
    read = library_defaults(library)
    fields = dataclasses.fields(LIBRARIES[library])
    assert {field.name: field.default for field in fields if field.name in read} == read
    assert len(read) > 100
