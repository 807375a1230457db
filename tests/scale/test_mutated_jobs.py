"""Sidecars, plans, manifests and files of prompts, each with one place changed: refused, made again, or harmless."""

import json
from pathlib import Path

import pytest
from bulking import SHARDS, copied
from mutations import damaged, rewrite, some_mutations

from bitdance_edge.errors import BitDanceError
from bitdance_edge.runtime import Bundle
from bitdance_edge.scale.plan import Plan
from bitdance_edge.scale.plan_file import NAME, job_plan, read_plan
from bitdance_edge.scale.prompts import read_prompts
from bitdance_edge.scale.records import MANIFEST, Problem, Record, check, content_digest, manifest_problem, sidecar

pytestmark = pytest.mark.usefixtures("cheap")
HARMLESS = {"made_by", "format"}  # what made a shard, and which of one format


def require_one_line(error: object, place: str) -> None:
    assert "\n" not in str(error) and len(str(error)) < 1000, place


def test_a_sidecar_is_right_or_its_shard_is_made_again(job: Plan, whole: Path, tmp_path: Path) -> None:
    folder = copied(job, whole, tmp_path / "job", [5])
    right, path = check(job, folder, 5), sidecar(job, folder, 5)
    assert isinstance(right, Record)
    for place, content in some_mutations(path.read_bytes()):
        rewrite(path, content)
        found = check(job, folder, 5)
        if isinstance(found, Problem):
            require_one_line(found.reason, place)
            continue
        assert place.split(" ")[0].split(".")[0] in HARMLESS, place
        assert content_digest([found]) == content_digest([right])


def test_a_manifest_is_right_or_said_to_be_wrong(job: Plan, whole: Path, tmp_path: Path) -> None:
    records = [found for shard in range(SHARDS) if isinstance(found := check(job, whole, shard), Record)]
    assert manifest_problem(job, whole, records) == ""
    for place, content in some_mutations((whole / MANIFEST).read_bytes()):
        rewrite(tmp_path / MANIFEST, content)
        reason = manifest_problem(job, tmp_path, records)
        require_one_line(reason, place)
        assert reason or json.loads(content) == json.loads((whole / MANIFEST).read_bytes()), place


def test_the_plan_of_a_job_is_as_it_was_written_or_refused(job: Plan, whole: Path, tmp_path: Path) -> None:
    for place, content in some_mutations((whole / NAME).read_bytes()):
        rewrite(tmp_path / NAME, content)
        try:
            found = job_plan(tmp_path)
        except BitDanceError as error:
            require_one_line(error, place)
        else:
            assert found is not None and found.job == job.job, place


@pytest.mark.parametrize("kind", ["classes", "prompts"])
def test_a_plan_of_a_person_is_a_job_or_refused(bundle: Bundle, word_bundle: Bundle, tmp_path: Path, kind: str) -> None:
    drawn = {"classes": (bundle, [1, 2]), "prompts": (word_bundle, ["a red fish"])}
    of, subjects = drawn[kind]
    settings = {"steps": 2, "guidance": 2.0, "guidance_schedule": "linear", "sampler": "sde", "published": False}
    settings["size"] = str(of.model.default_size.pixels)
    written = {"bundle": str(of.folder), kind: subjects, "count": 2, "seed": 1, "settings": settings}
    written |= {"images_at_once": 2, "shard_images": 4, "file_format": "tar"}
    taken = 0
    for place, content in some_mutations(json.dumps(written).encode()):
        rewrite(tmp_path / "plan.json", content)
        try:
            found = read_plan(tmp_path / "plan.json")
        except BitDanceError as error:
            require_one_line(error, place)
            continue
        taken += 1
        assert found.shards >= 1 and list(found.launches(0)), place
    assert taken


PROMPTS = {
    "prompts.txt": "a red fish\n\nein rötlicher Kreis\r\n".encode(),
    "prompts.jsonl": b'{"prompt": "a red fish", "tag": "colors"}\n\n{"prompt": "caf\\u00e9 \xe2\x80\xa8 2"}\n',
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_file_of_prompts_is_read_or_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(PROMPTS[name])
    assert len(read_prompts(tmp_path / name)) == 2
    for content in damaged(PROMPTS[name]):
        rewrite(tmp_path / name, content)
        try:
            found = read_prompts(tmp_path / name)
        except BitDanceError as error:
            require_one_line(error, repr(content))
        else:
            assert all(prompt.text.encode() and prompt.text.strip() for prompt in found), content
