"""Help that fits, examples that are commands, signals that leave nothing, silence unless asked."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest

import coreprune
from cli.commands import MODEL, good
from coreprune.cli.main import cli

#: of the tests' own modules, and of the package that is being tested
PLACES = os.pathsep.join(str(Path(file).parents[1]) for file in (__file__, coreprune.__file__))
COMMANDS = sorted(cli.commands)
RUN = "from coreprune.cli.main import main; main()"
#: the same, held up between two files of the result until it is stopped
HELD = f"""
import signal, sys, time, coreprune
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests in the background ignores it
module = sys.modules["coreprune.result"]
write = module.write_json
def held(*words):
    write(*words)
    print("READY", flush=True)
    time.sleep(60)
module.write_json = held
{RUN}
"""
needs_pty = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")


def environment(**more):
    kept = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "FORCE_COLOR", "TERM"}}
    return kept | {"PYTHONPATH": PLACES, "OMP_NUM_THREADS": "1"} | more


def start(code, *words, folder, **more):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], cwd=folder, text=True, **more)


def test_help_fits_a_screen(command):
    lines = good(command("--help")).splitlines()
    assert len(lines) <= 23  # and the prompt
    assert max(map(len, lines)) <= 80
    for name in COMMANDS:
        assert any(line.split()[:1] == [name] for line in lines), name


def test_help_tells_exit_codes_and_completion(command):
    text = good(command("--help"))
    for words in ("0 done", "1 defect", "2 mend it", "130 stopped", "_COREPRUNE_COMPLETE=bash_source"):
        assert words in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_it_understands(command, name):
    text = good(command(name, "--help"))
    assert max(map(len, text.splitlines())) <= 80
    examples = [
        line.split("Example: ")[-1].strip()
        for line in text.splitlines()
        if re.search(r"(^  |Example:) +coreprune", line)
    ]
    assert examples, text
    for example in examples:
        words = shlex.split(example)
        assert words[:2] == ["coreprune", name]
        cli.commands[name].make_context(name, words[2:])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_common_options(name):
    options = {word for param in cli.commands[name].params for word in param.opts}
    assert {"--json", "-v", "--log-level"} <= options


@pytest.mark.parametrize(
    "words",
    [
        ["plan", MODEL, "-o", "p", "--units", "0=5"],
        ["prune", MODEL, "s", "--units", "0=5"],
        ["inspect", MODEL],
        ["info"],
    ],
    ids=lambda words: words[0],
)
def test_json_is_all_that_is_printed(command, words):
    assert isinstance(json.loads(good(command(*words, "--json"))), dict)


def test_json_of_prune_and_apply_is_that_of_the_report(command):
    pruned = json.loads(good(command("prune", MODEL, "small", "--units", "0=5", "--json")))
    assert pruned.pop("timing")["seconds"]  # of the run alone
    assert pruned == json.loads(good(command("report", "small", "--json")))
    good(command("plan", MODEL, "-o", "plan", "--units", "0=5"))
    applied = json.loads(good(command("apply", MODEL, "plan", "-o", "other", "--json")))
    assert applied["sites"] == pruned["sites"]


def test_json_of_a_plan_says_what_is_kept(command):
    body = json.loads(good(command("plan", MODEL, "-o", "plan", "--units", "0=5", "--json")))
    (site,) = body["sites"]
    assert (site["name"], site["units"], len(site["kept"])) == ("0", 16, 5)
    assert body["written_to"] == "plan"


def test_nothing_is_logged_unless_asked(command):
    words = ["prune", MODEL, "small", "--units", "0=5", "--force"]
    good(command(*words))
    code, _, told = command(*words, "-v")
    assert code == 0
    assert "info: pruning took" in told
    assert "debug" not in told
    _, _, more = command(*words, "--log-level", "debug")
    assert "debug: pruning 0/" in more
    _, _, none = command(*words, "--log-level", "error")
    assert none == ""


def test_an_unknown_level_is_told(command):
    code, out, err = command("info", "--log-level", "loud")
    assert (code, out) == (2, "")
    assert "loud" in err


@pytest.mark.parametrize("name", ["prune", "plan"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_signals_leave_nothing_half_written(tmp_path, name, number):
    """The process is stopped between two files of what it writes."""
    words = [MODEL, "out"] if name == "prune" else [MODEL, "-o", "out"]
    held = HELD if name == "prune" else HELD.replace("coreprune.result", "coreprune.plan")
    process = start(
        held, name, *words, "--units", "0=5",
        folder=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "READY\n"
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".out.")]  # it is at work
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == ""
    assert err.strip() == "stopped: nothing half-written is left"
    assert list(tmp_path.iterdir()) == []


def test_a_defect_leaves_with_one_and_a_traceback(tmp_path):
    broken = f"import coreprune.cli.inspect as module\nmodule.inspection_text = None\n{RUN}"
    process = start(
        broken, "inspect", MODEL,
        folder=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("Traceback")


@pytest.mark.parametrize(
    "words", [["inspect", "nothere"], ["prune", MODEL], ["prune", MODEL, "s", "--units", "9=3"], ["no-such-command"]]
)
def test_what_can_be_mended_leaves_with_two_and_no_traceback(command, words):
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert err
    assert "Traceback" not in err


def test_the_handler_of_signals_is_put_back(command):
    before = signal.getsignal(signal.SIGTERM)
    good(command("info"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_can_run_a_command(command):
    found = []
    thread = threading.Thread(target=lambda: found.append(command("info")))
    thread.start()
    thread.join()
    assert found[0][0] == 0


def on_a_terminal(folder, *words, code=RUN, **more):
    """What a command writes on stderr where that is a terminal."""
    master, slave = pty.openpty()
    process = start(
        code, *(words or ("prune", MODEL, "small", "--units", "0=5")),
        folder=folder, env=environment(TERM="xterm-256color", **more), stdout=subprocess.PIPE, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    written = b""
    while True:
        try:
            part = os.read(master, 2**16)
        except OSError:
            part = b""
        if not part:
            break
        written += part
    out, _ = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == 0
    assert "\x1b" not in out
    return written.decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*[34][0-9][0-9;]*m")


@needs_pty
def test_colour_only_where_it_is_wanted(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert COLOUR.search(on_a_terminal(tmp_path / "a"))
    assert not COLOUR.search(on_a_terminal(tmp_path / "b", NO_COLOR="1"))


#: the command with a work of a second in it: five steps of which the end is known, and a wait
SLOW = f"""
import time, coreprune.cli.inspect as module
inspect = module.api.inspect
def slow(*words, **more):
    from coreprune.cli.bar import progress_bar
    time.sleep(1.2)
    return inspect(*words, **more)
module.api.inspect = slow
{RUN}
"""
STEPS = """
import time
from coreprune.cli.bar import progress_bar
with progress_bar("working") as step:
    for i in range(6):
        step(i, 6, f"part-{i}")
        time.sleep(0.25)
"""


@needs_pty
def test_the_time_so_far_where_the_end_is_not_known(tmp_path):
    told = on_a_terminal(tmp_path, "inspect", MODEL, code=SLOW)
    assert "inspecting" in told
    assert "0:00:01 so far" in told
    assert "None" not in told


@needs_pty
def test_the_time_left_where_the_end_is_known(tmp_path):
    told = on_a_terminal(tmp_path, "-", code=STEPS)
    assert "part-4" in told
    assert re.search(r"[1-5]/6.*0:00:0[0-9] left", told)


@needs_pty
@pytest.mark.parametrize("words", [["inspect", MODEL], ["report", "small", "--model", MODEL, "--force"]])
def test_what_takes_long_tells_that_it_is_at_work(tmp_path, words):
    on_a_terminal(tmp_path)
    told = on_a_terminal(tmp_path, *words)
    assert "reading" in told
    assert {"inspect": "inspecting", "report": "measuring"}[words[0]] in told


def completed(folder, line):
    """What bash offers behind a line, by the script that the documentation names."""
    script = f"""
        eval "$(_COREPRUNE_COMPLETE=bash_source coreprune)"
        COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _coreprune_completion coreprune
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment(PATH=path), capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_completion_completes(tmp_path):
    assert completed(tmp_path, "coreprune re") == ["report"]
    assert completed(tmp_path, "coreprune prune --re") == ["--remove", "--reweight"]
    assert completed(tmp_path, "coreprune prune --method re") == ["refined"]
    assert completed(tmp_path, "coreprune inspect --capture bl") == ["blocks"]


@pytest.mark.parametrize("line", ["inspect a", "prune m a", "apply m a", "verify m a", "compare a", "report a"])
def test_names_of_files_are_completed_by_the_shell(tmp_path, line):
    words = ["coreprune", *line.split()]
    asked = environment(_COREPRUNE_COMPLETE="bash_complete", COMP_WORDS=" ".join(words), COMP_CWORD=str(len(words) - 1))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = 'coreprune'; {RUN}"],
        cwd=tmp_path, env=asked, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["file,a"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script(tmp_path, shell):
    done = subprocess.run(
        [Path(sys.executable).with_name("coreprune")],
        env=environment(_COREPRUNE_COMPLETE=f"{shell}_source"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "coreprune" in done.stdout
    assert done.stderr == ""


def test_commands_are_listed_in_the_order_of_their_use():
    with click.Context(cli) as context:
        names = cli.list_commands(context)
    assert names.index("inspect") < names.index("plan") < names.index("apply") < names.index("verify")


@needs_pty
def test_what_took_how_long_is_told_at_the_end_where_someone_looks(tmp_path):
    told = on_a_terminal(tmp_path)
    assert re.search(r"took [0-9.]+ s: \w+ \d+%", told)


def test_what_took_how_long_is_in_the_json_and_otherwise_only_told_when_asked(command):
    body = json.loads(good(command("prune", MODEL, "small", "--units", "0=5", "--json")))
    assert {"reading", "selecting", "cutting", "saving"} <= set(body["timing"]["seconds"])
    assert sum(body["timing"]["shares"].values()) == pytest.approx(1)
    assert set(json.loads(good(command("plan", MODEL, "-o", "plan", "--units", "0=5", "--json")))["timing"]["seconds"])
    assert "took" not in good(command("prune", MODEL, "other", "--units", "0=5"))
    _, out, err = command("prune", MODEL, "third", "--units", "0=5", "-v")
    assert "info: took" in err
    assert "took" not in out
