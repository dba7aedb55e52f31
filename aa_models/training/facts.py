"""What is known of a run beside its recipe: the names of its classes, the machine."""
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aa_models.durable import replace_text
from aa_models.errors import InputError
from aa_models.schema import parsed_json

FACTS = 'run.json'


def write_facts(directory: Path, facts: Mapping[str, Any]) -> None:
    """Store what is known of the run in a directory."""
    replace_text(directory / FACTS, json.dumps(facts))


def facts_of(directory: Path) -> dict[str, Any]:
    """What `write_facts` stored with the run, if anything.

    Raises:
        InputError: The file was changed to something else.
    """
    path = directory / FACTS
    if not path.is_file():
        return {}
    facts = parsed_json(path)
    if not isinstance(facts.get('classes', []), (list, type(None))):
        raise InputError(f'{path} is not what a run notes of itself')
    return facts
