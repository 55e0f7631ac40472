"""docs/api.md says what is true, and its examples are taken as they are written."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

from tests.api.conftest import Desk
from webapp.problems import KINDS

DOCS = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


def test_every_kind_of_problem_is_told_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.+?) \|", DOCS, re.MULTILINE)
    told = {(kind, int(status)) for status, kinds in rows for kind in re.findall("`(.+?)`", kinds)}
    assert told == {(kind, status) for kind, (status, _title, _about) in KINDS.items()}


def test_every_example_of_curl_is_taken(light_desk: Desk) -> None:
    program = light_desk.program()
    queue_id = program.send()
    shown = re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL)
    examples = [text for text in shown if "curl" in text]
    assert len(examples) == 3
    for text in examples:
        words = shlex.split(text.replace("\\\n", " "))
        headers = {
            name: value.replace("KEY", program.key)
            for name, _, value in (
                word.partition(": ") for before, word in pairwise(words) if before == "--header"
            )
        }
        url = next(word for word in words if word.startswith("https://"))
        path = url.partition("/api/v1")[2].replace("01HZX3K8M2Q7W4TB", queue_id)
        data = None
        if "--data" in words:
            data = words[words.index("--data") + 1]
            assert json.loads(data)
        elif "--data-binary" in words:
            data = words[words.index("printf") + 1].replace("\\n", "\n")
        answer = program.ask("POST" if data else "GET", path, data=data, headers=headers)
        assert answer.status_code in {200, 202}, answer.text
