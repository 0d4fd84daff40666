"""The `minilib` command as a user meets it: exit codes, one clear line, nothing done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy_trials as toy
from fixture_book import edit, make_book, write_chapter

from minilib import cli, ledger, provenance, settings
from minilib.runs import execute, run, verify

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(tmp_path / "book")
    (root / "results").mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setenv("MINILIB_LEDGER", str(tmp_path / "trials"))
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    return root


def computed(book: Path) -> int:
    """How many toy trials were really computed so far, in all processes."""
    log = book.parent / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def committed(book: Path, change: str = "", commit: str = "0123456789ab") -> None:
    """Let the local trials have been made at a commit, and one number of a kind be another."""
    for path in (book.parent / "trials").rglob("*.json"):
        item = json.loads(path.read_text())
        item["commit"] = commit
        if item["kind"] == change:
            item["rows"][0]["pacc"] += 0.5
        provenance.write_json(path, item)


@pytest.fixture
def no_kernel(monkeypatch):
    def start(job, fresh):
        raise AssertionError("a kernel was about to start")

    monkeypatch.setattr(execute, "run", start)


def call(capsys, line: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of one command."""
    capsys.readouterr()
    code = cli.main(line.split())
    return code, *capsys.readouterr()


def record(root: Path, chapter: str) -> dict:
    """The only run record of a chapter."""
    (path,) = root.glob(f"runs/smoke/{chapter}/*/run.json")
    return json.loads(path.read_text())


def environment() -> dict:
    paths = filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


# ---------------------------------------------------------------- refused before a kernel starts


@pytest.mark.parametrize(
    "line, says",
    [
        (
            "run 01_fine --preset smoke -p alhpa=1",
            "no parameter 'alhpa' (did you mean 'alpha'?); parameters are alpha",
        ),
        ("run 01_fine --preset smoke -p seed=2.5", "seed must be an int, not '2.5'"),
        ("run 01_fine --preset smoke -p alpha=fast", "alpha must be a float, not 'fast'"),
        ("run 01_fine --preset smoke -p alpha=nan", "alpha must be a float, not 'nan'"),
        ("run 01_fine --preset smoke -p deep=maybe", "deep must be a bool (true/false"),
        ("run 01_fine --preset smoke -p alpha", "NAME=VALUE, as in -p alpha=3, not 'alpha'"),
        ("run 01_fine --preset tiny", "no preset 'tiny'; presets are smoke"),
        ("run 09_none --preset smoke", "no chapter '09_none'; chapters are 01_fine, 02_fails"),
        ("run --preset smoke", "name one chapter or give --all"),
        ("run --all --preset smoke -p seed=1", "-p sets the parameters of one chapter"),
        ("run 01_fine --preset smoke --fresh speed", "no kind of trial 'speed'; kinds are"),
        ("run 01_fine --preset smoke --fresh text_victim", "no kind of trial 'text_victim'"),
        ("publish --preset smoke 01_fine", "with these parameters; minilib run 01_fine"),
        ("trials show 0000", "0 trials have a key that begins with '0000'"),
        ("trials list speed", "no kind of trial 'speed'"),
        ("trials list text_measure lr", "NAME=VALUE"),
        ("trials find", "trials takes list KIND, show KEY or diff KEY KEY, not 'find'"),
        ("trials list text_measure lr>fast", "'lr>fast' compares with 'fast'; accepted: a number"),
        ("trials list text_measure lr>>1", "'lr>>1' compares with '>1'; accepted: a number"),
        ("verify", "no trial is published"),
        ("verify --sample 0", "--sample must be above 0, not 0"),
        ("verify --sample -3", "--sample must be above 0, not -3"),
        ("sweep none.yml", "cannot read none.yml"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line_and_2(book, capsys, no_kernel, line, says):
    code, out, err = call(capsys, line)
    assert (code, out) == (2, "")
    assert err.startswith("minilib: ") and err.count("\n") == 1
    assert says in err


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]"
BAD_YAML = {
    "a: [": "while parsing",
    "a: b: c": "mapping values are not allowed",
    "grid: {alpha: [1]}\ngrid: {alpha: [2]}": "'grid' stands twice in the mapping of line 1",
    BOMB: "line 2 has an alias inside an anchor",
    "[" * 2000: "line 1 is more than 20 levels deep",
    "a: 2024-99-99": "month must be in 1..12",
    "a: " + "9" * 5000: "Exceeds the limit",
    'a: "\\ud800"': "surrogates not allowed",
    "a: \x07": "special characters are not allowed",
    "? [a]\n: 1": "unhashable key",
    "!!python/object/apply:os.getcwd []": "could not determine a constructor",
    "- 1": "holds [1]; accepted: a mapping",
    "x" * 2**20 + "yy": "longer than 1 MiB",
    "chapter: " + "n" * 5000 + "\npreset: smoke": "no chapter 'nnn",
    "chapter: ../x\npreset: smoke": "no chapter '../x'",
    'chapter: "\\e[31m\\u202e"\npreset: smoke': r"\x1b[31m",
}


@pytest.mark.parametrize("text", BAD_YAML, ids=lambda text: text[:12])
def test_a_yaml_file_that_cannot_be_read_is_one_short_line(book, capsys, text):
    Path("s.yml").write_text(text)
    (book / "presets" / "bad.yml").write_text(text)
    code, _, err = call(capsys, "sweep s.yml")
    assert code == 2 and err.count("\n") == 1 and len(err) < 320 and err[:-1].isprintable()
    assert BAD_YAML[text] in err
    code, _, err = call(capsys, "run 01_fine --preset bad")
    assert code == 2 and err.count("\n") == 1 and len(err) < 320 and err[:-1].isprintable()


def test_a_value_out_of_the_chapters_range_is_refused(book, capsys, no_kernel):
    write_chapter(book, "03_ga_rga", None, settings.parameters_cell("03_ga_rga"))
    (book / "presets" / "smoke.yml").write_text("03_ga_rga: {}\n")
    code, _, err = call(capsys, "run 03_ga_rga --preset smoke -p alpha=-1")
    assert code == 2 and err.count("\n") == 1
    assert "alpha" in err and "-1" in err and err.count("03_ga_rga") == 1
    code, _, err = call(capsys, "run 03_ga_rga --preset smoke -p methods=ga,rga,ga")
    assert code == 2 and "methods is 'ga,rga,ga'; 'ga' stands twice; accepted: each once" in err


def test_a_chapter_missing_from_a_preset_is_refused(book, capsys, no_kernel):
    write_chapter(book, "07_new", None)
    code, _, err = call(capsys, "run 07_new --preset smoke")
    assert code == 2 and "has no entry for 07_new" in err


def test_help_loads_nothing_heavy():
    program = (
        "import sys\nfrom minilib import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'papermill', 'pandas', 'pydantic', 'numpy', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "publish" in done.stdout


# ---------------------------------------------------------------- runs in a real kernel


def test_a_run_is_made_once(book, capsys):
    code, out, _ = call(capsys, "run 01_fine --preset smoke -p seed=3 -p deep=yes")
    assert code == 0 and "ok in" in out
    made = record(book, "01_fine")
    assert made["status"] == "ok"
    assert made["params"] == {"alpha": 0.1, "seed": 3, "deep": True, "method": "rga"}
    assert (made["keys"], made["computed"]) == ({}, 0)
    assert made["commit"] == provenance.git_commit() and "metrics" not in made
    assert made["seconds"] >= 0 and made["peak_mib"] > 0
    folder = next(book.glob("runs/smoke/01_fine/[!.]*"))
    assert folder.name == made["run_id"]
    assert sorted(path.name for path in folder.iterdir()) == ["notebook.ipynb", "run.json"]
    # Nothing of this machine's folders, nor papermill's timings.
    text = (folder / "notebook.ipynb").read_text() + (folder / "run.json").read_text()
    assert str(book) not in text and sys.prefix not in text and '"papermill"' not in text
    assert "injected-parameters" in text

    # The same request, written differently, is the same run; a truncated record is no run.
    code, out, _ = call(capsys, "run 01_fine --preset smoke -p seed=3 -p deep=1 -p alpha=0.10")
    assert code == 0 and "exists" in out
    path = folder / "run.json"
    path.write_text(path.read_text()[:100])
    code, out, _ = call(capsys, "run 01_fine --preset smoke -p seed=3 -p deep=yes")
    assert code == 0 and "ok in" in out
    assert record(book, "01_fine")["params"] == made["params"]


def test_a_run_takes_this_python_whatever_else_is_called_python3(
    book, capsys, monkeypatch, tmp_path
):
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["no-such-python", "{connection_file}"], "display_name": "x", "language": "x"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert call(capsys, "run 01_fine --preset smoke")[0] == 0


def test_a_failed_cell_leaves_its_notebook_and_a_failed_record(book, capsys):
    code, out, err = call(capsys, "run 02_fails --preset smoke -p seed=1")
    assert code == 1 and "ZeroDivisionError: division by zero (cell 3)" in err
    made = record(book, "02_fails")
    assert (made["status"], made["cell"], made["keys"]) == ("failed", 3, {})
    assert made["error"] == "ZeroDivisionError: division by zero"
    text = next(book.glob("runs/smoke/02_fails/*/notebook.ipynb")).read_text()
    assert "ZeroDivisionError" in text and "before" in text
    code, _, err = call(capsys, "publish --preset smoke 02_fails -p seed=1")
    assert code == 2 and "has status failed" in err


def test_what_a_cell_prints_is_cut_and_what_killed_it_is_named(book, capsys, monkeypatch):
    write_chapter(book, "01_fine", "print('x' * 10**6)")
    assert call(capsys, "run 01_fine --preset smoke")[0] == 0
    (notebook,) = book.glob("runs/smoke/01_fine/*/notebook.ipynb")
    text = notebook.read_text()
    assert len(text) < 250_000 and "800001 characters are left out" in text

    job = execute.plan("01_fine", "smoke")
    died = type("DeadKernelError", (RuntimeError,), {})("Kernel died")
    monkeypatch.setattr(execute, "oom_kills", lambda: 7)
    named = execute._failure(died, job, kills_before=7)
    assert named["cause"] == "outside" and "where memory runs out" in named["error"]
    named = execute._failure(died, job, kills_before=6)
    assert named["cause"] == "memory" and named["error"].endswith("killed, memory ran out")
    ruled = execute._failure(ValueError("what was wrong\n-------\n"), job)
    assert ruled["error"] == "ValueError: what was wrong"


def test_a_missing_data_set_is_the_users_to_mend(book, capsys):
    code, _, err = call(capsys, "run 03_no_data --preset smoke")
    assert code == 2 and "DataError: no sst2; set MINILIB_DATA" in err and err.count("\n") == 1
    assert record(book, "03_no_data")["status"] == "failed"


def test_a_notebook_that_ignores_its_parameters_has_failed(book, capsys):
    code, _, err = call(capsys, "run 05_forgets --preset smoke")
    assert code == 1 and "recorded alpha=7.0 but was given 2.0" in err


def test_a_run_computes_what_is_missing_and_says_what_it_read(book, capsys):
    code, out, _ = call(capsys, "run 06_reads --preset smoke -p method=ga")
    assert code == 0 and "2 trials, 2 computed" in out and computed(book) == 2
    made = record(book, "06_reads")
    assert {kind: len(keys) for kind, keys in made["keys"].items()} == {
        "toy_map": 1, "toy_unlearning": 1,
    }  # fmt: skip
    assert sum(made["machines"].values()) == 2
    shown = json.loads(next(book.glob("runs/smoke/06_reads/*/notebook.ipynb")).read_text())
    assert shown["metadata"]["minilib"]["keys"] == made["keys"]
    code, out, _ = call(capsys, "run 06_reads --preset smoke -p method=ga --force")
    assert code == 0 and "2 trials, 0 computed" in out and computed(book) == 2


def test_all_chapters_run_side_by_side(book, capsys):
    for name in ("02_fails", "03_no_data", "04_slow"):
        (book / "notebooks" / f"{name}.ipynb").unlink()
    code, out, err = call(capsys, "run --all --preset smoke --workers 2")
    assert code == 1 and "recorded alpha=7.0" in err and err.count("\n05_forgets") == 1
    assert "06_reads" in out and "2 trials, 2 computed" in out and computed(book) == 2
    code, out, err = call(capsys, "run --all --preset smoke --workers 2 --force")
    assert code == 1 and "2 trials, 0 computed" in out and computed(book) == 2


def test_fresh_trials_are_set_beside_the_old_ones(book, capsys):
    call(capsys, "run 06_reads --preset smoke")
    committed(book, change="toy_unlearning")  # as if other code had made it
    code, out, _ = call(capsys, "run 06_reads --preset smoke --fresh toy_unlearning,toy_map")
    lines = out.splitlines()
    assert code == 0 and computed(book) == 4
    assert [line.rpartition(": ")[2] for line in lines[1:]] == ["equal", "pacc 0.5"]
    assert lines[2].strip().startswith("toy_unlearning") and "epochs=2" in lines[2]
    # What is in the ledger stands, and a run that shows other numbers is none to go by.
    code, out, _ = call(capsys, "run 06_reads --preset smoke")
    assert code == 0 and "2 trials, 0 computed" in out and computed(book) == 4
    # Asked again, they are computed again.
    call(capsys, "run 06_reads --preset smoke --fresh toy_map")
    assert computed(book) == 5


def test_publishing(book, capsys):
    call(capsys, "run 06_reads --preset smoke")
    committed(book, commit="0123456789ab+dirty")
    code, _, err = call(capsys, "publish --preset smoke 06_reads")
    assert code == 2 and "its code was not committed" in err and not list(book.glob("results/*"))
    committed(book, change="toy_unlearning")
    code, out, _ = call(capsys, "publish --preset smoke 06_reads")
    assert code == 0 and "2 trials written to results/, 0 of them replaced others" in out
    page = book / "book" / "_executed" / "06_reads.ipynb"
    assert page.read_bytes() == next(book.glob("runs/smoke/06_reads/*/*.ipynb")).read_bytes()
    lines = (book / "results" / "toy_unlearning.jsonl").read_text().splitlines()
    assert len(lines) == 1 and len(list((book / "results" / "toy_map").glob("*.npz"))) == 1
    assert "0 trials written" in call(capsys, "publish --preset smoke 06_reads")[1]

    # Published trials stand until they are replaced on purpose.
    call(capsys, "run 06_reads --preset smoke --fresh toy_unlearning")
    committed(book)
    code, _, err = call(capsys, "publish --preset smoke 06_reads")
    assert code == 2 and "1 of the trials" in err and "--replace does so" in err
    code, out, _ = call(capsys, "publish --preset smoke 06_reads --replace")
    assert code == 0 and "1 of them replaced others" in out and "pacc 0.5" in out
    assert (book / "results" / "toy_unlearning.jsonl").read_text().splitlines() != lines

    # Another notebook: there is no run of it, and nothing published is touched.
    edit(book / "notebooks" / "06_reads.ipynb", 3, "alpha_shown = alpha + 1")
    before = page.read_bytes()
    code, _, err = call(capsys, "publish --preset smoke 06_reads")
    assert code == 2 and "no smoke run of this notebook" in err and page.read_bytes() == before


def test_trials_are_listed_and_shown(book, capsys):
    one = ledger.get(toy.ToySlow(number=3))
    ledger.get(toy.ToySlow(number=4))
    code, out, _ = call(capsys, "trials")
    assert code == 0 and ["toy_slow", "1", "0", "2", "0"] in map(str.split, out.splitlines())
    code, out, _ = call(capsys, "trials list toy_slow number=3")
    assert code == 0 and out.count("\n") == 2 and one.key in out and "number=3" in out
    code, out, _ = call(capsys, "trials list toy_slow --json")
    assert {json.loads(line)["rows"][0]["square"] for line in out.splitlines()} == {9, 16}
    code, out, _ = call(capsys, f"trials show {one.key[:8]}")
    assert code == 0 and json.loads(out)["key"] == one.key
    assert json.loads(out)["make_again"] == f"minilib verify {one.key}"
    code, _, err = call(capsys, "trials list toy_slow speed=3")
    assert code == 2 and "no column 'speed'; columns are number, seconds" in err


def test_trials_are_chosen_ranked_exported_and_compared(book, capsys):
    keys = {n: ledger.get(toy.ToySlow(number=n)).key for n in (3, 4, 5)}

    def said(words: str) -> list[str]:
        code, out, err = call(capsys, f"trials {words}")
        assert code == 0, err
        return out.splitlines()

    assert len(said("list toy_slow square>9")) == 3 and len(said("list toy_slow square!=9.0")) == 3
    head, *ranked = said("list toy_slow --sort square --top 2")
    assert [keys[5] in ranked[0], keys[4] in ranked[1], len(ranked)] == [True, True, 2]
    assert head.split()[-1] == "square" and ranked[0].split()[-1] == "25"
    head, *rows = said("list toy_slow number<=4 --csv")
    assert "square" in head.split(",") and len(rows) == 2
    assert said(f"diff {keys[3]} {keys[5]}") == ["number: 3 → 5", "square 16"]
    (told,) = said(f"diff {keys[3]} {keys[5]} --json")
    assert json.loads(told) == {"settings": {"number": [3, 5]}, "deviations": "square 16"}
    code, _, err = call(capsys, "trials list toy_slow --sort sqare")
    assert code == 2 and "no column 'sqare' (did you mean 'square'?)" in err


def test_runs_are_listed_shown_and_compared(book, capsys):
    jobs = [execute.plan("01_fine", "smoke", {"seed": seed}) for seed in (1, 2)]
    for job, seconds in zip(jobs, (1, 2), strict=True):
        record = execute.blank(job) | {"status": "ok", "seconds": seconds}
        provenance.write_json(job.folder / "run.json", record)
    (jobs[0].folder.parent / "0" / "x").mkdir(parents=True)
    provenance.write_json(jobs[0].folder.parent / "0" / "run.json", {"status": "forged"})
    code, out, _ = call(capsys, "runs list seed=2")
    assert code == 0 and jobs[1].run_id in out and jobs[0].run_id not in out
    code, out, _ = call(capsys, "runs --sort seconds --json")
    assert [json.loads(line)["run_id"] for line in out.splitlines()] == [
        jobs[1].run_id, jobs[0].run_id,
    ]  # fmt: skip
    assert json.loads(call(capsys, f"runs show {jobs[0].run_id}")[1])["seconds"] == 1
    out = call(capsys, f"runs diff {jobs[0].run_id} {jobs[1].run_id}")[1]
    assert "seed: 1 → 2" in out and "alpha" not in out
    assert "0 runs have an id that begins with 'zz'" in call(capsys, "runs show zz")[2]


def test_chapters_and_parameters_are_listed(capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    code, out, _ = call(capsys, "list --json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["chapter"] for row in rows] == execute.chapters(REPOSITORY)
    by_name = {}
    for line in call(capsys, "list 03_ga_rga --json")[1].splitlines():
        row = json.loads(line)
        by_name[row["parameter"]] = row
    assert list(by_name) == settings.names_of("03_ga_rga")
    assert by_name["rate"]["accepted"] == "> 0 ≤ 1" and by_name["rate"]["type"] == "float"
    assert by_name["methods"]["accepted"].startswith("a list of ga, npo")
    assert all(row["description"] for row in by_name.values())
    assert "did you mean '03_ga_rga'" in call(capsys, "list 03_ga_rg")[2]


def test_the_search_of_the_setup_page_calls_trials(monkeypatch):
    text = (REPOSITORY / "book" / "setup.md").read_text()
    (program,) = (code for code in text.split("```python\n")[1:] if "import optuna" in code)
    trial = SimpleNamespace(suggest_float=lambda *_, **__: 3.0, suggest_categorical=lambda *_: 5e-5)
    study = SimpleNamespace(best_params={}, best_value=0, values=[])
    study.optimize = lambda objective, n_trials: study.values.append(objective(trial))
    samplers = SimpleNamespace(TPESampler=lambda seed: None)
    optuna = SimpleNamespace(create_study=lambda **_: study, samplers=samplers)
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    monkeypatch.setattr(ledger, "_compute", lambda *_: pytest.fail("it is published"))
    exec(program.partition("```")[0], {})
    assert 50 < study.values[0] < 100


def test_parameters_come_from_a_file(book, capsys, no_kernel, monkeypatch):
    Path("p.yml").write_text("alpha: 0.5\nseed: 3\n")
    monkeypatch.setattr(run, "run_one", lambda job, *_: print(job.params) or 0)
    code, out, _ = call(capsys, "run 01_fine --preset smoke -f p.yml -p seed=4")
    assert code == 0 and "'alpha': 0.5, 'seed': 4" in out
    assert "cannot read none.yml" in call(capsys, "run 01_fine --preset smoke -f none.yml")[2]


def test_a_run_that_takes_too_long_has_failed(book, capsys):
    code, out, err = call(capsys, "run 04_slow --preset smoke --time-limit 0.05 --json")
    made = json.loads(out)
    assert code == 1 and made["status"] == "failed" and made["cause"] == "itself"
    assert "TimeLimitError: longer than --time-limit 0.05 min" in err


@pytest.mark.parametrize(
    "line", ["run 01_fine --preset smoke --workers 100000000", "sweep s.yml --workers 1025"]
)
def test_more_workers_than_a_machine_has_are_refused(book, capsys, line):
    assert "--workers must be up to 1024" in call(capsys, line)[2]


def test_the_cache_is_cleaned_of_models_alone(book, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path / "models"))
    folder = tmp_path / "models" / "toy_victim"
    folder.mkdir(parents=True)
    for name in ("a.json", "a.safetensors", "notes.txt"):
        (folder / name).write_text("x")
    assert "1 models, 0 MiB, would be removed" in call(capsys, "clean --cache --dry-run")[1]
    assert (folder / "a.json").exists()
    assert "1 models" in call(capsys, "clean --cache")[1]
    assert {path.name for path in folder.iterdir()} - {"a.lock"} == {"notes.txt"}


def test_a_console_that_is_not_utf8_and_a_reader_that_leaves():
    words = [sys.executable, "-m", "minilib.cli", "list", "03_ga_rga"]
    ascii_only = environment() | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(words, env=ascii_only, cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0 and b"\\u2264" in done.stdout and done.stderr == b""
    process = subprocess.Popen(
        words, env=environment(), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # as `| head` does
    assert process.stderr.read() == b"" and process.wait() == 0


def test_a_shell_completes_commands_and_chapters(book, capsys):
    script = call(capsys, "completion bash")[1]
    ask = f'{script}\nCOMP_WORDS=(minilib run 01); COMP_CWORD=2; _minilib; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
    assert done.stdout.strip() == "01_fine", done.stderr
    assert "bashcompinit" in call(capsys, "completion zsh")[1]


def test_version_and_exit_codes_are_told(capsys):
    for words, says in (["--version"], f"minilib {provenance.version('minilib')}"), (
        ["run", "--help"], "2 the request cannot be met",
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            cli.main(words)
        assert says in " ".join(capsys.readouterr().out.split())


def test_a_published_trial_is_computed_from_nothing_and_compared(book, capsys, monkeypatch):
    victim = toy.ToyVictim(data=toy.ToyData())
    wanted = [toy.ToyUnlearning(victim=victim, method="ga"), toy.ToyMap(victim=victim)]
    first, second = ledger.run(wanted)
    capsys.readouterr()
    committed(book)
    ledger.publish([ledger.look(one) for one in wanted], book / "results")
    before = computed(book)
    code, out, _ = call(capsys, "verify --sample 5 --seed 1")
    assert code == 0 and out.count(": equal") == 2 and computed(book) == before + 2
    lines = [json.loads(x) for x in (book / "results" / "verified.jsonl").read_text().splitlines()]
    assert {line["key"] for line in lines} == {first.key, second.key}
    assert {"kind", "when", "env", "commit", "deviations"} < lines[0].keys()
    assert set(lines[0]["deviations"].values()) | set(lines[1]["deviations"].values()) == {0.0}

    path = book / "results" / "toy_unlearning.jsonl"
    item = json.loads(path.read_text())
    item["rows"][3]["pacc"] += 0.25
    path.write_text(json.dumps(item) + "\n")
    code, out, _ = call(capsys, f"verify {first.key}")
    assert code == 1 and "MOVED: pacc 0.25" in out
    item["env"]["torch"] = "1.0"  # there it may differ
    path.write_text(json.dumps(item) + "\n")
    code, out, _ = call(capsys, f"verify {first.key}")
    assert code == 0 and "pacc 0.25" in out and "torch 1.0" in out
    item["env"]["torch"] = provenance.version("torch")
    path.write_text(json.dumps(item) + "\n")
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")  # nor here: it passes for a lesser processor
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    code, out, _ = call(capsys, f"verify {first.key}")
    assert code == 0 and "pacc 0.25" in out
    log = (book / "results" / "verified.jsonl").read_text().splitlines()
    assert len(log) == 5 and json.loads(log[-1])["deviations"]["pacc"] == 0.25
    assert [json.loads(one)["env"].get("isa") for one in log] == [None] * 4 + ["AVX2"]


def trial(**row) -> ledger.Trial:
    return ledger.Trial(kind="toy_slow", version=1, key="0" * 16, recipe={}, rows=[row])


@pytest.mark.parametrize(
    "old, new, says",
    [
        ({"a": 1.0, "seconds": 3.0}, {"a": 1.0, "seconds": 9.0}, "equal"),
        ({"a": 1.0, "b": 2}, {"a": 1.5, "b": 5}, "b 3, a 0.5"),
        ({"a": [[1, 2], [3, 4]]}, {"a": [[1, 2], [3, 6]]}, "a 2"),
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, "a differs"),
        ({"a": "x"}, {"a": "y"}, "a differs"),
        ({"a": None}, {"a": 1.0}, "a differs"),
        ({"a": 1.0}, {}, "a differs"),
        ({"a": True, "b": None}, {"a": True, "b": None}, "equal"),
    ],
)
def test_what_moved_is_told_the_largest_first(old, new, says):
    assert verify.told(verify.deviations(trial(**old), trial(**new))) == says


def test_all_chapters_run_past_a_failed_one(book, capsys):
    for name in ("03_no_data", "04_slow", "05_forgets", "06_reads"):
        (book / "notebooks" / f"{name}.ipynb").unlink()
    write_chapter(book, "02_fails", "1 / 0")
    write_chapter(book, "03_fine", None)
    with (book / "presets" / "smoke.yml").open("a") as presets:
        presets.write("03_fine: {}\n")
    code, out, err = call(capsys, "run --all --preset smoke")
    assert code == 1 and out.count("ok in") == 2 and "02_fails" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_a_record_that_says_so(book, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "minilib.cli", "run", "04_slow", "--preset", "smoke"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (book / "started").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert record(book, "04_slow")["status"] == "interrupted" and "stopped by a signal" in err
