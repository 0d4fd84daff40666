"""The workflows, templates and hooks: they call what exists, with no more rights than they need."""

import argparse
import re
import subprocess

import pytest
import yaml
from conftest import ROOT
from test_repository import locked

from minilib import cli

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
each = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
# Steps of the platform's and of PyPI's own makers; anything else needs a reason and a line here.
# A tag can be moved to other code; a commit cannot. The tag that it had stands behind it.
ACTIONS = r"(actions/[a-z-]+|pypa/gh-action-pypi-publish)@[0-9a-f]{40} # v\d+\.\d+\.\d+"
RIGHTS = {
    "test": {},
    "nightly": {},
    "links": {},
    "audit": {},
    "site": {"deploy": {"pages": "write", "id-token": "write"}},
    "small": {"propose": {"contents": "write", "pull-requests": "write"}},
    "release": {"publish": {"id-token": "write"}},
}


def steps(workflow: dict) -> list[dict]:
    """All steps of all jobs."""
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def scripts(workflow: dict) -> str:
    """Everything that a shell executes."""
    return "\n".join(step["run"] for step in steps(workflow) if "run" in step)


def verbs() -> set[str]:
    """The sub-commands of `minilib`."""
    for action in cli.parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return set(action.choices)
    raise AssertionError("the parser has no sub-commands")


def targets() -> set[str]:
    """What `make` can make by name."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^([a-z]+):", text, re.MULTILINE))
    return named | {".venv/installed", ".venv-site/installed", ".venv-ci/installed"}


def test_the_seven_workflows_are_there():
    assert {path.stem for path in WORKFLOWS} == set(RIGHTS)


@each
def test_commands_and_files_that_a_workflow_names_exist(path):
    script = scripts(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert set(re.findall(r"^\s*make (\S+)", script, re.MULTILINE)) <= targets()
    assert set(re.findall(r"\bminilib ([a-z]+)", script)) <= verbs()
    for word in re.findall(r"(?:python|bash) ((?:tools|\.ci)/\S+)", script):
        assert (ROOT / word).is_file(), word
    for preset in re.findall(r"--preset (\w+)", script):
        assert (ROOT / "presets" / f"{preset}.yml").is_file()
    for line in re.findall(r"cache-dependency-path: (\S+)", path.read_text(encoding="utf-8")):
        assert (ROOT / line).is_file(), line


@each
def test_scripts_are_shell_and_take_no_text_from_outside(path):
    """A value put into a script by the platform would be executed; it comes as a variable."""
    for step in steps(yaml.safe_load(path.read_text(encoding="utf-8"))):
        if "run" in step:
            assert "${{" not in step["run"], step["run"]
            checked = subprocess.run(["bash", "-n"], input=step["run"], text=True)
            assert checked.returncode == 0, step["run"]


@each
def test_rights_are_declared_and_least(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    given = {
        name: {what: kind for what, kind in job["permissions"].items() if kind == "write"}
        for name, job in workflow["jobs"].items()
        if "permissions" in job
    }
    assert given == RIGHTS[path.stem]
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


@each
def test_no_secret_but_the_workflows_own_token(path):
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"secrets\.(\w+)", text)) <= {"GITHUB_TOKEN"}
    assert not re.search(r"secrets: *inherit|pull_request_target|password:|api-token", text)


@each
def test_actions_are_the_platforms_own_and_pinned_by_commit(path):
    named = re.findall(r"^[ -]*uses: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    uses = [
        step for step in steps(yaml.safe_load(path.read_text(encoding="utf-8"))) if "uses" in step
    ]
    assert len(named) == len(uses) >= 1
    assert all(re.fullmatch(ACTIONS, one) for one in named), named


def test_one_action_has_one_commit():
    """Two files that pin one action differently: one of them was forgotten."""
    text = "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    pins = set(re.findall(r"uses: ([\w/-]+)@(\w+)", text))
    assert len(pins) == len({name for name, _ in pins})


@each
def test_a_job_that_can_write_installs_nothing(path):
    """What came from an index, or a page that runs code, never holds a token that writes."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    for job in workflow["jobs"].values():
        if "write" in job.get("permissions", {}).values():
            script = "\n".join(step.get("run", "") for step in job["steps"])
            assert not re.search(r"\b(pip|python3?|make|minilib|npm|curl|wget)\b", script), script


@each
def test_a_workflow_installs_by_hash_alone(path):
    script = scripts(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert not re.search(r"\bpip3? install|\bpipx\b|\buvx?\b", script)
    installs = re.findall(r"\$\(PIP\) (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    unhashed = [line for line in installs if "--require-hashes" not in line]
    # A machine's own build of torch, the checkout itself, and the resolver, which no workflow runs.
    assert [line.split()[-1] for line in unhashed] == ["uv", "torch", "."]
    assert "make lock" not in script


def test_the_suite_runs_on_the_oldest_and_the_newest_python():
    workflow = yaml.safe_load((GITHUB / "workflows" / "test.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert ci in scripts(workflow).splitlines(), "what .ci/run ends with"


def test_trained_models_are_asked_about_on_each_processor_with_threads_and_seeds():
    workflow = yaml.safe_load((GITHUB / "workflows" / "nightly.yml").read_text(encoding="utf-8"))
    jobs = workflow["jobs"]
    whole = {row.get("isa") for row in jobs["nightly"]["strategy"]["matrix"]["include"]}
    matrix = jobs["trained"]["strategy"]["matrix"]
    assert whole - {None} == {one for one in matrix["processor"] if one.startswith("AVX")}
    assert len(matrix["processor"]) == len(whole) == 4
    assert (matrix["threads"], matrix["seed"]) == ([1, 4], [0, 1, 2])
    # What the job sets is what the suite reads.
    fixtures = "".join((ROOT / "tests" / f"{name}.py").read_text(encoding="utf-8")
                       for name in ("conftest", "core_fixtures"))  # fmt: skip
    assert all(f'"{name}"' in fixtures for name in jobs["trained"]["env"] if "TEST" in name)


def test_the_site_is_deployed_from_where_it_is_built():
    workflow = yaml.safe_load((GITHUB / "workflows" / "site.yml").read_text(encoding="utf-8"))
    (upload,) = (s["with"]["path"] for s in steps(workflow) if "pages-artifact" in str(s))
    assert upload == "_build/published/html"
    assert workflow["jobs"]["deploy"]["needs"] == "build"


# ---------------------------------------------------------------- templates and hooks


def test_issue_forms_are_whole():
    forms = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))
    assert {path.stem for path in forms} >= {"bug", "number", "method"}
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem == "config":
            continue
        assert {"name", "description", "body"} <= set(form), path.name
        ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(ids) == len(set(ids)) and ids
        said = yaml.safe_dump(form)
        assert set(re.findall(r"minilib ([a-z]+)", said)) <= verbs()


def test_hooks_have_the_versions_of_the_lock():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    revisions = {repo["repo"].rpartition("/")[2]: repo["rev"] for repo in hooks["repos"]}
    assert revisions["ruff-pre-commit"] == "v" + locked("requirements.lock")["ruff"]
    assert {"nbstripout", "codespell"} <= set(revisions)
    (strip,) = (
        hook for repo in hooks["repos"] for hook in repo["hooks"] if hook["id"] == "nbstripout"
    )
    assert re.search(strip["files"], "notebooks/01_attacks.ipynb")
    assert not re.search(strip["files"], "book/_executed/01_attacks.ipynb"), "they keep theirs"


@pytest.mark.parametrize(
    "name", ["CONTRIBUTING.md", "CODE_OF_CONDUCT.md", ".github/pull_request_template.md"]
)
def test_commands_and_files_that_a_guide_names_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert set(re.findall(r"\bmake ([a-z]+)", text)) <= targets()
    assert set(re.findall(r"\bminilib ([a-z]+)", text)) <= verbs()
    for word in re.findall(r"`([\w./-]+\.(?:py|yml|md|csv|lock|toml|ipynb))`", text):
        assert (ROOT / word).is_file() or "yours" in word or word.startswith("my_"), word
    for word in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / name).parent.joinpath(word).exists(), word
