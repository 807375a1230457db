"""A plan says everything that decides the bytes of a shard, and nothing else."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from bulking import small_plan

from bitdance_edge.runtime import Bundle, RequestError
from bitdance_edge.scale.bulk import parse_shards
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.plan import Plan, make_plan
from bitdance_edge.scale.plan_file import job_plan, read_plan, write_plan
from bitdance_edge.scale.prompts import read_prompts


def test_images_count_their_seeds_and_go_around_their_subjects(job: Plan, bundle: Bundle) -> None:
    launches = [request for shard in range(job.shards) for request in job.launches(shard)]
    images = [image for request in launches for image in request.resolve(bundle).images]
    assert [image.seed for image in images] == list(range(7, 7 + job.images))
    assert [image.class_id for image in images] == [i % 4 for i in range(job.images)]
    assert [len(request.subjects) for request in launches] == [5, 3] * job.shards


def test_the_last_shard_and_launch_hold_the_rest(bundle: Bundle) -> None:
    plan = make_plan(str(bundle.folder), classes=[1], count=11, shard_images=4, images_at_once=3)
    assert [len(plan.images_of(i)) for i in range(plan.shards)] == [4, 4, 3]
    assert [[len(r.subjects) for r in plan.launches(i)] for i in range(plan.shards)] == [[3, 1], [3, 1], [3]]


def test_defaults_and_the_same_values_given_are_one_job(job: Plan, bundle: Bundle) -> None:
    sampling = bundle.sampling
    given = small_plan(bundle.folder, settings={"sampler": sampling.sampler, "guidance": sampling.guidance})
    assert given.job == job.job
    elsewhere = replace(job, bundle="/somewhere/else")
    assert elsewhere.job == job.job


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 8},
        {"count": 5},
        {"images_at_once": 4},
        {"shard_images": 7},
        {"file_format": "npz"},
        {"settings": {"steps": 3}},
        {"settings": {"guidance": 2.5}},
    ],
)
def test_what_changes_bytes_changes_the_job(job: Plan, bundle: Bundle, changed: dict) -> None:
    other = small_plan(bundle.folder, **changed)
    assert other.job != job.job
    (difference,) = job.differences(other)
    assert difference.startswith(next(iter(changed.get("settings", changed))))


def test_a_written_plan_is_read_back_and_goes_on_as_the_same_job(job: Plan, tmp_path: Path) -> None:
    write_plan(job, tmp_path)
    assert job_plan(tmp_path) == job
    assert read_plan(tmp_path / "plan.json") == job


def test_a_short_plan_takes_defaults(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"bundle": str(bundle.folder), "classes": "all", "settings": {"steps": 2}}))
    plan = read_plan(file)
    assert plan.images == bundle.model.num_classes and plan.settings["steps"] == 2
    assert read_plan(file, str(bundle.folder)) == plan


def test_an_edited_plan_of_a_job_is_refused(job: Plan, tmp_path: Path) -> None:
    write_plan(job, tmp_path)
    file = tmp_path / "plan.json"
    file.write_text(file.read_text().replace('"seed": 7', '"seed": 8'))
    with pytest.raises(ScaleError, match="not as it was written"):
        job_plan(tmp_path)


def test_a_plan_of_another_bundle_is_refused(job: Plan, bundle: Bundle, tmp_path: Path) -> None:
    write_plan(job, tmp_path)
    other = Path(shutil.copytree(bundle.folder, tmp_path / "other"))
    replace(bundle, folder=other, name="other").write()
    with pytest.raises(ScaleError, match="give the right one with --bundle"):
        read_plan(tmp_path / "plan.json", str(other))


@pytest.mark.parametrize(
    "content, said",
    [
        ("[", "no plan"),
        ("[]", "no JSON object"),
        ('{"classes": [1]}', "names no bundle"),
        ('{"bundle": "B", "clases": [1]}', "has clases; a plan may have"),
        ('{"bundle": "B", "classes": 3}', "classes is 3; give a list"),
        ('{"bundle": "B", "prompts": "all"}', "prompts is 'all'; give a list"),
        ('{"bundle": "B", "classes": [1], "settings": {"step": 3}}', "they may have negative_prompt"),
        ('{"bundle": "B", "format": 9}', "has format 9"),
        ('{"bundle": "B", "classes": [1], "count": 0}', "count is 0"),
        ('{"bundle": "B", "classes": [99]}', "class is 99"),
        ('{"bundle": "B", "classes": [1], "file_format": "zip"}', "file_format is 'zip'"),
        ('{"bundle": "B"}', "give --classes or --prompts"),
        (
            '{"bundle": "elsewhere", "classes": [1]}',
            "no bundle at elsewhere.*, or give its folder with --bundle FOLDER",
        ),
    ],
)
def test_a_wrong_plan_file_is_refused(content: str, said: str, bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(content.replace('"B"', json.dumps(str(bundle.folder))))
    with pytest.raises(ScaleError, match=said):
        read_plan(file)


def test_a_bundle_of_classes_draws_no_prompts(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="draws classes, not prompts"):
        make_plan(str(bundle.folder), prompts=["a red fish"])


def test_too_many_images_are_refused(bundle: Bundle) -> None:
    with pytest.raises(ScaleError, match="1,000,000,000 at most"):
        make_plan(str(bundle.folder), classes=[0] * 2000, count=1_000_000)


@pytest.mark.parametrize("text, shards", [("0-11", range(12)), ("3", range(3, 4)), ("5-7", range(5, 8))])
def test_ranges_of_shards_include_both_ends(job: Plan, text: str, shards: range) -> None:
    assert parse_shards(text, job) == shards


@pytest.mark.parametrize("text", ["", "12", "3-12", "5-4", "-1", "1-", "a-b", "0:3"])
def test_ranges_outside_the_plan_are_refused(job: Plan, text: str) -> None:
    with pytest.raises(ScaleError, match="the job has shards 0 to 11"):
        parse_shards(text, job)


def test_prompts_are_read_from_lines_metadata_and_folders(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("a red fish\n\n a blue bird \n")
    assert [prompt.text for prompt in read_prompts(tmp_path / "plain.txt")] == ["a red fish", "a blue bird"]
    (tmp_path / "meta.jsonl").write_text('{"tag": "colors", "prompt": "a red fish"}\n')
    (found,) = read_prompts(tmp_path / "meta.jsonl")
    assert found.text == "a red fish" and found.metadata == {"tag": "colors", "prompt": "a red fish"}
    for name, prompt in (("10", "ten"), ("9", "nine"), ("cat", "a cat")):
        (tmp_path / f"{name}.txt").write_text(prompt)
    (tmp_path / "plain.txt").unlink()
    assert [(each.name, each.text) for each in read_prompts(tmp_path)] == [
        ("9", "nine"),
        ("10", "ten"),
        ("cat", "a cat"),
    ]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.txt", "\n\n", "holds no prompt"),
        ("a.jsonl", '{"prompt": "one"}\n{"text": "two"}\n', "line 2"),
        ("a.jsonl", '{"prompt": 3}\n', "line 1"),
        ("a.jsonl", '{"prompt": " "}\n', "line 1: the prompt is empty"),
    ],
)
def test_files_without_prompts_are_refused(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ScaleError, match=said):
        read_prompts(tmp_path / name)
