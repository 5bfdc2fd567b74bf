"""The copy of the code that queued jobs run: made of a real git checkout, by the code that lies in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ("data/__init__.py", "data/version.py", "slurm/__init__.py", "slurm/snapshot.py")
TAKE = """
import sys
from pathlib import Path
from slurm.snapshot import snapshot
try:
    print(snapshot(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]))
except ValueError as error:
    print("error:", error)
"""


def git(checkout: Path, *words: str) -> None:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    subprocess.run(["git", "-C", str(checkout), *who, *words], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the code that is tested here, and ignored files."""
    folder = tmp_path / "checkout"
    for name in CODE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / ".gitignore").write_text("*.log\n__pycache__/\n")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    (folder / "noise.log").write_text("ignored")
    return folder


@pytest.fixture
def taken(tmp_path: Path, checkout: Path):
    """Folders to leave out -> what `snapshot` of the checkout answers, in a process of its own."""
    (tmp_path / "work").mkdir()

    def taken(*leave_out: Path, cwd: Path = tmp_path / "work") -> str:
        environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", TAKE, str(tmp_path / "code"), *map(str, leave_out)]
        return subprocess.run(
            command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, check=True, timeout=60
        ).stdout.strip()

    return taken


def files_in(folder: Path | str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_a_copy_holds_what_git_knows_or_would_and_nothing_that_it_ignores(checkout, taken):
    name = 'a b, "c" $HOME\n.py'
    (checkout / name).write_text("untracked")
    (checkout / "gone.py").write_text("tracked")
    git(checkout, "add", "gone.py")
    (checkout / "gone.py").unlink()
    copy = taken()
    assert files_in(copy) == {*CODE, ".gitignore", ".fulcrum-version", name}
    assert (Path(copy) / name).read_text() == "untracked"
    assert (Path(copy) / CODE[1]).read_bytes() == (checkout / CODE[1]).read_bytes()


def test_the_same_code_is_copied_once_and_changed_code_apart(checkout, taken):
    first = taken()
    before = Path(first).stat().st_ino
    assert taken() == first and Path(first).stat().st_ino == before
    module = checkout / "slurm" / "__init__.py"
    old = module.read_text()
    module.write_text(f"{old}# edited\n")
    second = taken()
    assert second != first and (Path(second) / "slurm" / "__init__.py").read_text().endswith("# edited\n")
    assert (Path(first) / "slurm" / "__init__.py").read_text() == old, "queued jobs run what they were submitted with"
    module.write_text(old)
    assert taken() == first
    (checkout / "new.py").write_text("")
    third = taken()
    assert third not in (first, second)
    (checkout / "new.py").rename(checkout / "renamed.py")
    assert taken() not in (first, second, third)
    assert sorted(os.listdir(Path(first).parent)) == sorted({first[-12:], second[-12:], third[-12:], taken()[-12:]})


def test_the_version_in_a_copy_is_that_of_the_checkout(checkout, taken):
    (checkout / "slurm" / "__init__.py").write_text("# edited\n")
    copy = taken()
    tell = "from data.version import code_version, ROOT; print(ROOT, code_version())"
    environment = os.environ | {"PYTHONPATH": copy, "PYTHONSAFEPATH": "1"}
    told = subprocess.run([sys.executable, "-c", tell], env=environment, text=True, capture_output=True, check=True)
    root, version = told.stdout.split()
    assert root == copy and version.endswith("-dirty")
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    assert version.endswith("+" + subprocess.check_output(describe, text=True).strip())


def test_records_and_data_inside_the_checkout_are_left_out(checkout, taken):
    for name in ("runs/x/.jobs/code/abc", "cache"):
        (checkout / name).mkdir(parents=True)
        (checkout / name / "large.bin").write_text("of no interest")
    inside = {"runs/x/.jobs/code/abc/large.bin", "cache/large.bin"}
    assert inside <= files_in(taken())
    assert not inside & files_in(taken(checkout / "runs", checkout / "cache"))


def test_a_users_own_conf_is_part_of_it(checkout, taken, tmp_path):
    plain = taken()
    own = tmp_path / "work" / "conf" / "slurm"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("partition: a\n")
    first = taken()
    assert first != plain and (Path(first) / "user_conf" / "slurm" / "mine.yaml").read_text() == "partition: a\n"
    (own / "mine.yaml").write_text("partition: b\n")
    assert taken() not in (plain, first)


def test_the_conf_of_the_checkout_is_not_copied_twice(checkout, taken):
    (checkout / "conf").mkdir()
    (checkout / "conf" / "config.yaml").write_text("seed: 0\n")
    found = files_in(taken(cwd=checkout))
    assert "conf/config.yaml" in found and not [name for name in found if name.startswith("user_conf")]


def test_more_than_a_copy_may_be_is_refused_with_the_largest_files(checkout, taken, tmp_path):
    for name, megabytes in {"weights.bin": 150, "corpus.txt": 60}.items():
        with (checkout / name).open("wb") as file:
            file.truncate(megabytes * 1_000_000)  # takes no room
    said = taken()
    assert said.startswith(f"error: the code in {checkout} is 210 MB, more than a copy for the jobs may be.")
    assert "Largest: weights.bin (150 MB), corpus.txt (60 MB), " in said and "Name data in .gitignore." in said
    assert not (tmp_path / "code").exists()
    (checkout / ".gitignore").write_text("*.log\n__pycache__/\nweights.bin\n")
    assert "weights.bin" not in files_in(taken())


def test_installed_code_is_not_copied(checkout, taken, tmp_path):
    shutil.rmtree(checkout / ".git")
    assert taken() == "None" and not (tmp_path / "code").exists()


def test_a_checkout_that_git_cannot_list_is_named(checkout, taken):
    (checkout / ".git" / "HEAD").unlink()
    said = taken()
    assert said.startswith(f"error: {checkout} is a git checkout and git cannot list it: ") and "fatal" in said


def test_a_machine_without_git_is_told_what_git_is_needed_for(taken, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert taken().startswith("error: ") and "git" in taken()


def test_what_a_kill_left_of_a_copy_is_not_taken_for_one(taken, tmp_path):
    name = Path(taken()).name
    whole = files_in(tmp_path / "code" / name)
    (tmp_path / "code" / name).rename(tmp_path / "code" / f".{name}.1")
    (tmp_path / "code" / f".{name}.1" / "data" / "version.py").unlink()
    assert files_in(taken()) == whole
