"""The recipe's shell without a model: runner, options, markers, locks, new recipes."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from launchers import StandIns

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "egs2" / "slit" / "slit1"
UTILS = RECIPE / "utils"
SCRIPTS = sorted(
    path
    for pattern in ("*.sh", "utils/*.sh", "local/*.sh")
    for path in RECIPE.glob(pattern)
) + sorted((ROOT / "tools").glob("*.sh"))


def shell(*command, cwd=None, **environment):
    """Run a command; returns (exit code, stdout, stderr)."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "SLIT_NO_INSTALL": "1",
            **environment,
        },
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def run_pl(folder, *words, **environment):
    return shell(UTILS / "run.pl", *words, cwd=folder, **environment)


# ------------------------------------------------------------------------------ run.pl


def test_run_pl_writes_header_output_and_footer(tmp_path):
    code, out, err = run_pl(
        tmp_path, "logs/x.log", "bash", "-c", "echo one; echo two >&2"
    )
    assert (code, out, err) == (0, "", "")
    lines = (tmp_path / "logs/x.log").read_text().splitlines()
    assert lines[0] == "# bash -c 'echo one; echo two >&2'"
    assert lines[1].startswith("# Started at ") and lines[2] == "#"
    assert lines[3:5] == ["one", "two"]
    assert re.fullmatch(r"# Accounting: time=\d+ threads=1", lines[5])
    assert re.fullmatch(r"# Ended \(code 0\) at .*, elapsed time \d+ seconds", lines[6])


def test_run_pl_replaces_the_job_name_in_command_and_log(tmp_path):
    code, _, _ = run_pl(
        tmp_path, "N=2:4", "log.N", "bash", "-c", "echo $1 > out.$1", "x", "N"
    )
    assert code == 0
    assert sorted(p.name for p in tmp_path.glob("log.*")) == ["log.2", "log.3", "log.4"]
    assert (tmp_path / "out.3").read_text() == "3\n"


def test_run_pl_reports_a_failed_job_with_its_log(tmp_path):
    code, _, err = run_pl(tmp_path, "x.log", "bash", "-c", "exit 7")
    assert code == 1 and "run.pl: job failed, log is in x.log" in err
    assert "# Ended (code 7)" in (tmp_path / "x.log").read_text()


def test_run_pl_runs_all_jobs_and_counts_the_failed(tmp_path):
    code, _, err = run_pl(
        tmp_path,
        "JOB=1:5",
        "x.JOB.log",
        "bash",
        "-c",
        "touch d.$1; [ $1 != 3 ]",
        "x",
        "JOB",
    )
    assert code == 1 and "run.pl: 1 / 5 failed, log is in x.*.log" in err
    assert len(list(tmp_path.glob("d.*"))) == 5


def test_run_pl_names_the_signal_that_ended_a_job(tmp_path):
    code, _, _ = run_pl(tmp_path, "x.log", "bash", "-c", "kill -9 $$")
    assert code == 1 and "(code 137; signal 9)" in (tmp_path / "x.log").read_text()


def test_run_pl_program_not_found(tmp_path):
    code, _, _ = run_pl(tmp_path, "x.log", "no_such_program")
    assert (
        code == 1
        and "no_such_program: No such file" in (tmp_path / "x.log").read_text()
    )


@pytest.mark.parametrize(
    "options",
    [
        ["--mem", "4G", "--num_threads", "2"],
        ["--name", "exp/a b.log", "--time", "1:00"],
        ["-pe", "smp", "4"],
        ["--config", "conf/queue.conf", "--gpu", "0"],
        ["-V", "-sync", "y"],
    ],
)
def test_run_pl_takes_the_options_of_other_backends(tmp_path, options):
    assert run_pl(tmp_path, *options, "x.log", "true")[0] == 0


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "expected a log file and a command"),
        (["x.log"], "expected a log file and a command"),
        (["JOB=1:3", "x.log", "true"], "the log file must contain JOB"),
        (["JOB=0:3", "x.JOB.log", "true"], "expected JOB=FIRST:LAST"),
        (["JOB=3:1", "x.JOB.log", "true"], "expected JOB=FIRST:LAST"),
        (["--gpu", "one", "x.log", "true"], "--gpu needs a number"),
        (["--pick", "some", "x.log", "true"], "--pick is all, failed or incomplete"),
    ],
)
def test_run_pl_refuses_wrong_use(tmp_path, words, message):
    code, _, err = run_pl(tmp_path, *words)
    assert code == 2 and message in err
    assert not list(tmp_path.iterdir())


words = st.lists(
    st.text(
        st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20
    ),
    max_size=4,
)


@settings(max_examples=15, deadline=None)
@given(words)
def test_run_pl_passes_words_on_as_they_are(tmp_path_factory, arguments):
    folder = tmp_path_factory.mktemp("words")
    tell = (
        "import os, sys;"
        " open('got', 'wb').write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    )
    code, _, _ = run_pl(folder, "x.log", sys.executable, "-c", tell, *arguments)
    assert code == 0
    assert (folder / "got").read_bytes() == b"\0".join(map(os.fsencode, arguments))
    assert sorted(p.name for p in folder.iterdir()) == ["got", "x.log"]


# Kaldi's run.pl, slurm.pl and queue.pl join the words: those without blanks as they
# are, the others in quotation marks of one kind or the other.
KALDI = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift 2; done
log=$1; shift
line=
for word; do
    case "${word}" in
        *" "*\\"*) line="${line} '${word}'" ;;
        *" "*) line="${line} \\"${word}\\"" ;;
        *) line="${line} ${word}" ;;
    esac
done
exec bash -c "${line}" >"${log}" 2>&1
"""
WAYS = {
    "our run.pl": [UTILS / "run.pl", "x.log"],
    "another run.pl": ["bin/kaldi", "x.log"],
    "ssh": [
        *[sys.executable, "-m", "espnet2.bin.launch", "--host", "localhost"],
        *["--ngpu", "0", "--log", "x.log", "--"],
    ],
}


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=5, deadline=None)
@given(words)
@example(
    ["$(touch x)", "`touch x`", "a'b c\\\\d", "", "{x: $HOME}", "two\nlines", "-é", "*"]
)
def test_words_reach_a_job_as_they_are(tmp_path_factory, way, arguments):
    """As slit.sh hands them over: in a script, which every runner names alike."""
    folder = tmp_path_factory.mktemp("words")
    stand_ins = StandIns(folder / "bin")
    (folder / "path.sh").touch()  # the launcher sources it on the other machine
    (folder / "bin" / "kaldi").write_text(KALDI)
    (folder / "bin" / "kaldi").chmod(0o755)
    tell = (
        "import os, sys;"
        " open('got', 'wb').write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    )
    write = 'job_variables=HOME; . "$0"; write_job logs/job.sh "$@"'
    job = ["bash", "-euc", write, UTILS / "stages.sh", sys.executable, "-c", tell]
    assert shell(*job, *arguments, cwd=folder)[0] == 0
    command = [*WAYS[way], "bash", "logs/job.sh", "--job", "1"]
    code, _, err = shell(*command, cwd=folder, PATH=stand_ins.path)
    assert code == 0, err + (folder / "x.log").read_text()
    got = (folder / "got").read_bytes().split(b"\0")
    assert got[: len(arguments)] == [os.fsencode(word) for word in arguments]
    assert got[len(arguments) :][:2] == [b"--job", b"1"]
    made = {p.name for p in folder.iterdir() if not p.name.startswith(".dist_init_")}
    assert made == {"bin", "got", "logs", "path.sh", "x.log"}


def test_named_variables_go_with_a_job(tmp_path):
    write = (
        "job_variables='MINE OTHER NONE'; . \"$0\"; export MINE='a b $x' OTHER=;"
        " write_job job.sh printenv MINE OTHER"
    )
    assert shell("bash", "-euc", write, UTILS / "stages.sh", cwd=tmp_path)[0] == 0
    code, out, _ = shell("env", "-i", "PATH=/usr/bin:/bin", tmp_path / "job.sh")
    assert (code, out) == (0, "a b $x\n\n")
    assert "NONE" not in (tmp_path / "job.sh").read_text()


def test_run_pl_limits_how_many_run_at_once(tmp_path):
    job = "touch r.$1; sleep 0.3; ls r.* | wc -l > n.$1; rm r.$1"
    run_pl(tmp_path, "--max-jobs-run", "2", "J=1:5", "x.J", "bash", "-c", job, "x", "J")
    assert max(int(p.read_text()) for p in tmp_path.glob("n.*")) <= 2


def test_run_pl_gives_each_job_of_an_array_its_own_gpu(tmp_path):
    job = "echo $CUDA_VISIBLE_DEVICES > g.$1; sleep 0.3"
    more = {"CUDA_VISIBLE_DEVICES": "4,6"}
    run_pl(tmp_path, "--gpu", "1", "J=1:2", "x.J", "bash", "-c", job, "x", "J", **more)
    assert sorted(p.read_text() for p in tmp_path.glob("g.*")) == ["4\n", "6\n"]


def test_run_pl_picks_what_failed_or_never_ended(tmp_path):
    job = ["bash", "-c", "echo x >> d.$1; [ $1 != 2 ]", "x", "J"]
    run_pl(tmp_path, "J=1:3", "x.J", *job)
    (tmp_path / "x.3").write_text("# Started\n")
    run_pl(tmp_path, "--pick", "failed", "J=1:3", "x.J", *job)
    counts = [(tmp_path / f"d.{n}").read_text().count("x") for n in (1, 2, 3)]
    assert counts == [1, 2, 2]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_jobs_end_with_their_runner(tmp_path, signum):
    job = "echo $$ > pid; exec sleep 60"
    runner = subprocess.Popen(
        [UTILS / "run.pl", "x.log", "bash", "-c", job], cwd=tmp_path
    )
    pid_file = tmp_path / "pid"
    while not pid_file.exists() or not pid_file.read_text():
        time.sleep(0.02)
    pid = int(pid_file.read_text())
    runner.send_signal(signum)
    runner.wait(10)
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or " Z " in state.read_text():
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the job outlived run.pl")


def test_stdout_pl_shows_the_output_too(tmp_path):
    code, out, _ = shell(UTILS / "stdout.pl", "x.log", "echo", "seen", cwd=tmp_path)
    assert code == 0 and out == "seen\n" and "seen" in (tmp_path / "x.log").read_text()


def test_espnets_launcher_works_with_run_pl(tmp_path):
    command = [
        sys.executable,
        "-m",
        "espnet2.bin.launch",
        "--cmd",
        "run.pl --name 'a b'",
    ]
    command += ["--log", "exp/train.log", "--ngpu", "0", "--", "echo", "it's $HOME"]
    path = f"{UTILS}:{os.environ['PATH']}"
    code, _, err = shell(*command, cwd=tmp_path, PATH=path)
    assert code == 0, err
    log = (tmp_path / "exp/train.log").read_text()
    assert "it's $HOME --ngpu 0 --multiprocessing_distributed True" in log


# ------------------------------------------------------------------- options and help


def options_script(folder, known=False):
    """A script with options; it prints them as it got them."""
    path = folder / "script.sh"
    path.write_text(
        "# Usage: script.sh [options]\n#\n# Does a thing.\n\nset -euo pipefail\n"
        "# Options\n#   One group\nnumber=1     # a number\nname=        # a name\n"
        "some_flag=false # yes or no\n# End of options\nhidden=1\n"
        f". {UTILS}/parse_options.sh\n"
        f'parse_{"known_" if known else ""}options "$@"\n'
        'printf "%s\\n" "${number}" "${name}" "${some_flag}" "${rest[@]}"\n'
    )
    return path


def parse(folder, *words, known=False):
    return shell("bash", options_script(folder, known), *words, cwd=folder)


def test_options_with_dash_underscore_or_equals_sign(tmp_path):
    words = ["--some-flag", "true", "--number=3", "--name", "a b $x 'q' --y 1"]
    code, out, _ = parse(tmp_path, *words)
    assert code == 0 and out.splitlines()[:3] == ["3", "a b $x 'q' --y 1", "true"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--nmber", "3"], "unknown option --nmber"),
        (["--hidden", "3"], "unknown option --hidden"),
        (["--PATH", "/"], "unknown option --PATH"),
        (["--number"], "option --number needs a value"),
        (["--number", "--name", "x"], "needs a value, found the option --name"),
        (["--some_flag", "yes"], "--some_flag is true or false, found 'yes'"),
        (["--number", "-1"], "--number is a number, found '-1'"),
        (["--number", ""], "--number is a number, found ''"),
        (["what"], "unexpected argument 'what'"),
        (["-n", "3"], "unexpected argument '-n'"),
    ],
)
def test_wrong_options_end_with_code_2_and_are_named(tmp_path, words, message):
    code, out, err = parse(tmp_path, *words)
    assert (code, out) == (2, "") and message in err


def test_help_prints_every_option_with_its_default(tmp_path):
    code, out, _ = parse(tmp_path, "--help")
    assert code == 0
    assert "Does a thing." in out and "One group" in out
    assert "--number VALUE\n        a number [1]" in out
    assert "--name VALUE\n        a name\n" in out
    assert "hidden" not in out


def test_what_a_wrapper_does_not_know_is_passed_on(tmp_path):
    words = ["--ngpu", "2", "--name", "x", "--train_args", "--max_epoch 1", "--last"]
    code, out, _ = parse(tmp_path, *words, known=True)
    assert code == 0
    rest = ["--ngpu", "2", "--train_args", "--max_epoch 1", "--last"]
    assert out.splitlines() == ["1", "x", "false", *rest]


@pytest.mark.parametrize(
    "script", ["run.sh", "slit.sh", "run_esc50.sh", "run_ablation.sh"]
)
def test_help_of_the_recipes_lists_the_options_of_slit_sh(script):
    code, out, _ = shell(RECIPE / script, "--help", cwd=RECIPE)
    assert code == 0
    for name in (
        "stage",
        "stop_stage",
        "ngpu",
        "num_nodes",
        "inference_nj",
        "test_sets",
    ):
        assert f"--{name} VALUE" in out
    block = (RECIPE / "slit.sh").read_text().split("# Options")[1].split("# End of")[0]
    for name in re.findall(r"^([a-z_]+)=", block, re.MULTILINE):
        assert f"--{name} VALUE" in out


@pytest.mark.parametrize("script", ["run.sh", "run_esc50.sh", "local/mini_data.sh"])
def test_scripts_find_their_options_when_called_from_another_folder(script):
    path = (RECIPE / script).relative_to(ROOT)
    code, out, err = shell(path, "--help", cwd=ROOT)
    assert code == 0 and "Options" in out, err


@pytest.mark.parametrize(
    "words, message",
    [
        (["--stge", "1"], "unknown option --stge"),
        (["--stage", "0"], "stages are 1 to 8, or data representation"),
        (["--stage", "9"], "stages are 1 to 8"),
        (["--stage", "5", "--stop-stage", "2"], "--stage decode --stop_stage represen"),
        (["--stage", "one"], "found 'one'"),
        (["--ngpu", "-1"], "--ngpu is a number, found '-1'"),
        (["--skip_upload", "1"], "--skip_upload is true or false"),
        (["--tag", "a b"], "--tag names folders that job runners meet"),
        (["--generator", "gpt"], "--generator is instruction or generative"),
        (["--leakage", "no"], "--leakage is report, stop or ignore"),
    ],
)
def test_a_wrong_call_of_run_sh_ends_with_code_2(words, message):
    code, _, err = shell(RECIPE / "run.sh", *words)
    assert code == 2 and message in err


@pytest.mark.parametrize(
    "words, message",
    [
        (["--manifest", "no.csv", "--stop-stage", "data"], "no such manifest"),
        (["--local_data_dir", "no", "--stop-stage", "1"], "no/train"),
        (["--stage", "decode", "--tag", "none"], "run stage instruction first"),
        (["--stage", "generative"], "run stage representation first"),
        (
            ["--stage", "2", "--stop-stage", "2", "--config", "x"],
            "no config 'x' for repr",
        ),
        (["--stage", "5", "--inference_config", "conf/no.yaml"], "no conf/no.yaml"),
        (["--stage", "8", "--skip_upload", "false"], "needs --hf_repo"),
    ],
)
def test_what_is_missing_is_named_with_the_remedy(new_recipe, words, message):
    command = [new_recipe / "slit.sh", "--test_sets", "t", "--ngpu", "0", *words]
    code, _, err = shell(*command, cwd=new_recipe)
    assert code in (1, 2) and message in err, err


def test_options_that_messages_name_are_there():
    """What slit.sh and what it sources tell the user to give."""
    scripts = [RECIPE / "slit.sh", RECIPE / "cmd.sh", *UTILS.glob("*.sh")]
    blocks = [(RECIPE / name).read_text() for name in ("slit.sh", "run.sh")]
    blocks = [text.split("# Options")[1].split("# End of")[0] for text in blocks]
    known = set(re.findall(r"^([a-z_0-9]+)=", "\n".join(blocks), re.MULTILINE))
    known |= {"name", "esc50", "help"}  # of other scripts
    named = set()
    for script in scripts:
        text = script.read_text().replace("\\\n", " ")
        for line in re.findall(r"(?:die|usage_error|log) (.*)", text):
            said = " ".join(re.findall(r'"([^"]*)"', line))
            named |= set(re.findall(r"--([a-z_0-9]+)", said))
    assert {"manifest", "local_data_dir", "config", "hf_repo", "parts"} <= named
    assert named <= known


def test_checkpoints_of_pretrained_model_are_words_of_their_own(new_recipe):
    (new_recipe / "a b.pth").touch()
    command = ["./slit.sh", "--stage", "representation", "--config", "mini"]
    command += ["--stop_stage", "representation", "--ngpu", "0"]
    command += ["--train_args", "--print_config", "--pretrained_model"]  # no training
    job = new_recipe / "exp" / "mini_representation" / "train.sh"
    for checkpoints, expected in (
        ("one.pth two.pth:qformer", "one.pth two.pth:qformer"),
        ("a b.pth", r"a\ b.pth"),  # a file of that name
    ):
        code, out, err = shell(*command, checkpoints, cwd=new_recipe)
        assert code == 0, out + err
        assert f"--init_param {expected} --print_config" in job.read_text()


def test_the_backend_must_be_a_known_one_and_there(new_recipe):
    code, _, err = shell(new_recipe / "slit.sh", cwd=new_recipe, cmd_backend="lsf")
    assert code == 1
    assert "cmd_backend=lsf: expected local, stdout, sge, slurm, pbs or ssh" in err
    code, _, err = shell(new_recipe / "slit.sh", cwd=new_recipe, cmd_backend="ssh")
    assert code == 1 and "cmd_backend=ssh needs ssh.pl" in err
    assert "There are: run.pl stdout.pl" in err


# -------------------------------------------------------------------------- new recipes


@pytest.fixture
def new_recipe(tmp_path):
    code, out, err = shell(RECIPE / "setup.sh", tmp_path / "egs2" / "mine" / "slit1")
    assert code == 0, err
    return tmp_path / "egs2" / "mine" / "slit1"


RECORDER = """#!/usr/bin/env bash
echo "$*" >>commands
while [ $# -gt 1 ]; do
    if [ "$1" = --output_dir ]; then mkdir -p "$2" && touch "$2/valid.loss.best.pth"; fi
    shift
done
"""


def test_baselines_are_trained_predicted_scored_and_compared_in_turn(new_recipe):
    for name in ("run_baselines.sh", "local/baselines.py"):
        (new_recipe / name).symlink_to(RECIPE / name)
    script = new_recipe / "run_baselines.sh"
    code, _, err = shell(script, cwd=new_recipe)
    assert code == 1 and "run ./run.sh first" in err
    decoded = new_recipe / "exp" / "mini_instruction" / "decode_mini"
    decoded.mkdir(parents=True)
    (decoded / "scores.json").touch()
    for name in ("train_caption", "valid_caption"):
        (new_recipe / "dump" / "mini_beats" / name).mkdir(parents=True)
        (new_recipe / "dump" / "mini_beats" / name / "feats.scp").touch()
    recorder = new_recipe / "recorder"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    code, out, err = shell(script, "--python", recorder, cwd=new_recipe)
    assert code == 0, err
    commands = (new_recipe / "commands").read_text().splitlines()
    words = ["train --model dual_encoder", "train --model captioner", "predict"]
    words += ["slit_score --predictions test_caption:retrieval=", "predict"]
    words += ["slit_score --predictions test_caption:caption=", "slit_compare"]
    words += [
        "slit_compare",
        "slit_score --decode_dir exp/mini_instruction/decode_mini",
    ]
    assert len(commands) == len(words)
    for command, expected in zip(commands, words, strict=True):
        assert expected in command
    assert "--max_epoch 2" in commands[0] and "--max_epoch 6" in commands[1]
    code, out, _ = shell(script, "--python", recorder, cwd=new_recipe)
    assert code == 0 and out.count("is up to date") == 2
    again = (new_recipe / "commands").read_text().splitlines()[len(commands) :]
    assert again == commands[2:]  # nothing is trained again


def test_setup_makes_a_recipe_anywhere(new_recipe):
    for name in (
        "slit.sh",
        "path.sh",
        "cmd.sh",
        "db.sh",
        "run.sh",
        "conf",
        "local/data.sh",
        "local/run_espnet3.py",
    ):
        assert (new_recipe / name).exists()
    assert not (new_recipe / "conf").is_symlink()
    where = (
        "cd '%s' && . ./path.sh && . ./cmd.sh && command -v ${cuda_cmd}" % new_recipe
    )
    code, out, err = shell("bash", "-euc", where)
    assert code == 0 and Path(out.strip()).resolve() == (UTILS / "run.pl").resolve()


def test_a_new_recipe_finds_files_where_it_is_called_from(new_recipe, tmp_path):
    (tmp_path / "rows.csv").write_text("audio,text\nnone.wav,a sound\n")
    words = ["--manifest", "rows.csv", "--stop_stage", "data", "--ngpu", "0"]
    _, out, err = shell(new_recipe / "run.sh", *words, cwd=tmp_path)
    assert f"{tmp_path}/rows.csv: " in out + err and "no such manifest" not in err


def test_local_settings_come_first_and_extra_programs_are_found(tmp_path):
    """In an ESPnet tree: its tools/extra_path.sh, and our local/settings.sh."""
    recipe = tmp_path / "egs2" / "mine" / "slit1"
    (tmp_path / "espnet2").mkdir()
    (tmp_path / "tools" / "sph2pipe").mkdir(parents=True)
    extra = tmp_path / "tools" / "extra_path.sh"
    extra.write_text(f'export PATH="{tmp_path}/tools/sph2pipe:$PATH"\n')
    program = tmp_path / "tools" / "sph2pipe" / "sph2pipe"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert shell(RECIPE / "setup.sh", recipe)[0] == 0
    settings = (
        f'PYTHON={sys.executable}\nexport HF_HOME=/mine\njob_variables+=" MINE"\n'
    )
    (recipe / "local" / "settings.sh").write_text(settings)
    where = (
        ". ./path.sh; command -v sph2pipe python3; echo $HF_HOME ${job_variables##* }"
    )
    command = ["bash", "-euc", f"cd '{recipe}'; {where}"]
    code, out, err = shell(*command, PYTHON="/no/python")
    assert code == 0, err
    assert out.splitlines()[0] == str(program)
    assert out.splitlines()[2] == "/mine MINE"


def test_setup_in_an_espnet_tree_uses_its_backends(tmp_path):
    template = tmp_path / "egs2" / "TEMPLATE" / "asr1"
    for name in ("utils", "scripts", "pyscripts", "steps"):
        (template / name).mkdir(parents=True)
    theirs = template / "utils" / "run.pl"
    theirs.write_text("#!/bin/sh\n")
    theirs.chmod(0o755)
    recipe = tmp_path / "egs2" / "mine" / "slit1"
    code, out, err = shell(RECIPE / "setup.sh", recipe)
    assert code == 0 and "ESPnet tree" in out, err
    assert os.readlink(recipe / "utils") == "../../TEMPLATE/asr1/utils"
    code, out, err = shell(
        "bash", "-euc", f"cd '{recipe}' && . ./path.sh && command -v run.pl stdout.pl"
    )
    assert code == 0, err
    first, second = (Path(line).resolve() for line in out.split())
    assert first == theirs.resolve()  # the tree's own
    assert second == (UTILS / "run.pl").resolve()  # what it lacks is ours


def test_setup_never_overwrites(new_recipe):
    before = (new_recipe / "run.sh").read_text()
    code, _, err = shell(RECIPE / "setup.sh", new_recipe)
    assert code == 1 and "has a recipe already" in err
    assert (new_recipe / "run.sh").read_text() == before
    assert shell(RECIPE / "setup.sh")[0] == 2
    assert shell(RECIPE / "setup.sh", "--dir", "x")[0] == 2


def test_a_recipe_outside_asks_for_the_installed_package(tmp_path):
    recipe = tmp_path / "egs2" / "slit" / "slit1"
    shutil.copytree(
        RECIPE,
        recipe,
        ignore=shutil.ignore_patterns("data", "dump", "exp", "downloads"),
    )
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    path = f"{python.parent}:{os.environ['PATH']}"
    code, _, err = shell(recipe / "slit.sh", "--ngpu", "0", cwd=recipe, PATH=path)
    assert code == 1 and "has no espnet2_slit" in err and "pip install -e" in err


# ------------------------------------------------------------------- markers and locks


def stages(folder, script):
    return shell(
        "bash", "-euo", "pipefail", "-c", f". {UTILS}/stages.sh\n{script}", cwd=folder
    )


def test_state_changes_with_content_not_with_time(tmp_path):
    (tmp_path / "f").write_text("one\n")
    first = stages(tmp_path, "state f none")[1]
    os.utime(tmp_path / "f", (1, 1))
    assert stages(tmp_path, "state f none")[1] == first
    (tmp_path / "f").write_text("two\n")
    assert stages(tmp_path, "state f none")[1] != first


def test_work_is_left_out_only_where_the_same_was_done_to_the_end(tmp_path):
    def done(words, file=""):
        code, out, _ = stages(tmp_path, f"begin work '{file}' '{words}'")
        assert out == "" if code == 0 else "work is up to date" in out
        return code == 1

    assert not done("a b")
    stages(tmp_path, "mark_done work 'a b'")
    assert done("a b") and not done("a c") and not done("")
    assert not done("a b", "model.pth")
    (tmp_path / "work" / "model.pth").touch()
    assert done("a b", "model.pth")


def test_a_second_run_in_one_folder_is_refused_even_after_a_kill(tmp_path):
    job = f". {UTILS}/stages.sh; hold work; echo go > started; sleep 60; :"
    first = subprocess.Popen(["bash", "-c", job], cwd=tmp_path, start_new_session=True)
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    first.kill()  # its child, the job, lives on and holds the lock
    first.wait()
    code, _, err = stages(tmp_path, "hold work")
    assert code == 1 and "another run works in work" in err
    os.killpg(first.pid, signal.SIGKILL)
    time.sleep(0.1)
    assert stages(tmp_path, "hold work")[0] == 0


# ----------------------------------------------------------------------- following logs


def follow(folder, log, *command):
    return shell(sys.executable, UTILS / "follow_log.py", log, *command, cwd=folder)


def test_follow_shows_epochs_and_counts(tmp_path):
    lines = [
        "[h] 2026 (trainer:1) INFO: 1epoch results: [train] iter_time=0.1, loss=2.5, "
        "clip=100, time=3 seconds, total_count=9, [valid] loss=2.25, time=1 second, ",
        "2026 (x:1) INFO: caption: 40 of 200 (11.2 a second)",
        "2026 (x:1) INFO: something else",
    ]
    script = "\n".join(f"echo {shlex.quote(line)} >> x.log" for line in lines)
    code, out, _ = follow(tmp_path, "x.log", "bash", "-c", script)
    assert code == 0
    assert (
        out.splitlines()[0]
        == "    epoch 1: train loss 2.5, valid loss 2.25 (3 seconds)"
    )
    assert "something else" not in out


def test_follow_ends_with_what_a_training_has_not_learned(tmp_path):
    line = (
        "[h] 2026 (trainer:1) INFO: 1epoch results: [train] accuracy_matching=0.667, "
        "loss_contrastive=4.16, recall_audio_to_text=0.015, time=3 seconds"
    )
    (tmp_path / "mine").mkdir()
    code, out, _ = follow(
        tmp_path,
        "mine/train.log",
        "bash",
        "-c",
        f"echo {shlex.quote(line)} > mine/train.log",
    )
    assert code == 0
    last = out.splitlines()[-1]
    assert last.startswith("    Warning: stage mine has learned nothing: matching")


def test_follow_says_how_long_a_planned_training_goes_on():
    code = (
        f"import sys; sys.path.insert(0, {str(UTILS)!r}); import follow_log\n"
        "step = follow_log.train_log.Step\n"
        "left = follow_log.Remaining(epochs=10, batches=60)\n"
        "print(left.after(step(1, 20, {'train_time': 2.0}), now=100.0))\n"
        "print(left.after(step(1, 40, {'train_time': 2.0}), now=160.0))\n"
        "print(left.after(step(2, 20, {'train_time': 2.0}), now=700.0))\n"
        "print(left.after(step(10, 50, {'train_time': 2.0}), now=800.0))\n"
    )
    done, out, err = shell(sys.executable, "-c", code)
    assert done == 0, err
    # 580 batches of 2 s, then 560 of 3 s, then of 10 s with a validation; then seconds
    lines = [", about 19 min left", ", about 28 min left", ", about 87 min left", ""]
    assert out.split("\n")[:4] == lines


def test_follow_shows_the_plan_of_a_training(tmp_path):
    line = "2026 (trainer:1) INFO: plan: 3 epochs of 9 batches, 27 optimizer steps"
    script = f"echo {shlex.quote(line)} >> x.log"
    code, out, _ = follow(tmp_path, "x.log", "bash", "-c", script)
    assert code == 0 and "plan: 3 epochs of 9 batches" in out


def test_follow_loses_no_line_after_bytes_that_are_no_text(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(UTILS)!r}); import follow_log\n"
        "follow_log.EVERY_S, log = 0, open('x.log', 'wb', buffering=0)\n"
        "follower = follow_log.Follower('x.log')\n"
        "for line in (b'1 of 9 \\xff\\xff\\xff\\xff', b'2 of 9'):\n"
        "    log.write(b'INFO: caption: ' + line + b'\\n')\n"
        "    follower.show()\n"
    )
    done, out, err = shell(sys.executable, "-c", code, cwd=tmp_path)
    assert done == 0 and "caption: 2 of 9" in out, out + err


def test_follow_shows_the_end_of_the_log_of_a_failed_command(tmp_path):
    script = "echo ValueError: the reason > x.log; echo noise >&2; exit 3"
    code, _, err = follow(tmp_path, "x.log", "bash", "-c", script)
    assert code == 3 and "the end of x.log" in err and "ValueError: the reason" in err


def test_follow_shows_what_was_said_where_there_is_no_log(tmp_path):
    code, _, err = follow(
        tmp_path, "x.log", "bash", "-c", "echo no such queue >&2; exit 1"
    )
    assert code == 1 and "no such queue" in err


# ------------------------------------------------------------------------- environment


def test_a_complete_environment_is_used_as_it_is():
    code, out, err = shell(ROOT / "tools" / "setup_env.sh")
    assert code == 0, err
    assert Path(out.strip()).resolve() == Path(sys.executable).resolve()


def test_setup_env_names_an_unsuitable_python(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\necho environment 3.9\n")
    old.chmod(0o755)
    for more in ([], ["--prefix", tmp_path / "env"]):
        command = [ROOT / "tools" / "setup_env.sh", *more]
        code, _, err = shell(*command, PYTHON=str(old))
        assert code == 1 and "is Python 3.9; expected 3.11, 3.12 or" in err
        for words in (["--python", "/no/python"], []):
            code, _, err = shell(*command, *words, PYTHON="/no/python")
            assert code == 1 and "PYTHON=/no/python does not run" in err
        assert not (tmp_path / "env").exists()


PYTHON = """#!/bin/sh
# Runs as Python {version}, with what is installed into the file beside it.
case "$*" in
    "- "*) [ -f {folder}/installed ] || echo espnet2 torch ;;
    -) echo environment {version} ;;
    *) echo "$*" >>{folder}/installed ;;
esac
"""


def an_environment(folder, version="3.12"):
    """A stand-in for an environment that lacks packages; its Python."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(PYTHON.format(folder=folder, version=version))
    python.chmod(0o755)
    return python


def test_setup_env_changes_a_foreign_environment_only_when_asked(tmp_path):
    theirs = an_environment(tmp_path / "theirs")
    checkout = tmp_path / "checkout"  # without the .venv that this one may have
    shutil.copytree(ROOT / "tools", checkout / "tools")
    shutil.copy(ROOT / "setup.py", checkout)
    script = checkout / "tools" / "setup_env.sh"
    active = {"PYTHON": "", "VIRTUAL_ENV": str(tmp_path / "theirs")}
    code, _, err = shell(script, **active)
    assert code == 1 and "SLIT_NO_INSTALL is set" in err
    assert "lacks: espnet2 torch. It is not ours and stays as it is" in err
    for variable in ("SLURM_JOB_ID", "JOB_ID", "PBS_JOBID"):
        job = {**active, "SLIT_NO_INSTALL": "", variable: "7"}
        code, _, err = shell(script, "--install", **job)
        assert code == 1 and "nothing is installed inside a job" in err
    assert not (tmp_path / "theirs" / "installed").exists()
    active["SLIT_NO_INSTALL"] = ""
    code, out, err = shell(script, "--install", **active)
    assert (code, out.strip()) == (0, str(theirs)), err
    assert "-m pip install" in (tmp_path / "theirs" / "installed").read_text()


def test_setup_env_remakes_an_environment_of_another_python(tmp_path):
    script, prefix = ROOT / "tools" / "setup_env.sh", tmp_path / "env"
    wanted = an_environment(tmp_path / "wanted", "3.12")
    an_environment(prefix, "3.11")
    (prefix / "pyvenv.cfg").touch()
    versions = "echo torch 2.13.0 $(cat tools/requirements/*.txt setup.py | cksum) $PWD"
    _, key, _ = shell("bash", "-c", versions, cwd=ROOT)
    (prefix / ".espnet2_slit_done").write_text(key)
    code, out, err = shell(
        script, "--prefix", prefix, PYTHON="", TORCH_VERSION="2.13.0"
    )
    assert (code, out.strip()) == (0, f"{prefix}/bin/python"), err
    code, out, err = shell(script, "--prefix", prefix, "--python", wanted)
    assert (code, out) == (1, "") and "no complete environment" in err


def test_setup_env_leaves_a_foreign_folder_alone(tmp_path):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "mine").write_text("x")
    code, _, err = shell(ROOT / "tools" / "setup_env.sh", "--prefix", tmp_path / "env")
    assert code == 1 and "is no virtual environment" in err
    assert [p.name for p in (tmp_path / "env").iterdir()] == ["mine"]


@pytest.mark.parametrize("words", [["--prefx", "x"], ["--prefix"], ["--python"]])
def test_setup_env_wrong_options(words):
    assert shell(ROOT / "tools" / "setup_env.sh", *words)[0] == 2


@pytest.mark.skipif(
    not shutil.which("shellcheck"), reason="shellcheck is not installed"
)
def test_shellcheck_finds_nothing():
    code, out, _ = shell("shellcheck", "-e", "SC1091,SC2154", *SCRIPTS)
    assert code == 0, out


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_stop_at_errors(script):
    assert shell("bash", "-n", script)[0] == 0
    text = script.read_text()
    sourced = "shellcheck shell=bash" in text
    assert sourced or "set -euo pipefail" in text
    assert not re.search(
        r"\beval\b|pip install (?!-)", text.replace("pip install -e", "")
    )


# ------------------------------------------------------------------------ ESC by fold


@pytest.fixture
def esc_recipe(tmp_path):
    """run_esc50.sh with stand-ins for the scripts that it calls: they note words."""
    recipe = tmp_path / "egs2" / "slit" / "slit1"
    ignored = shutil.ignore_patterns("data", "dump", "exp", "downloads")
    shutil.copytree(RECIPE, recipe, ignore=ignored)
    for name in ("run.sh", "slit.sh"):
        # the options stay: --help and the parser read them
        text = (recipe / name).read_text()
        options = text[text.index("# Options") :].split("# End of options")[0]
        (recipe / name).write_text(
            f"#!/usr/bin/env bash\n{options}# End of options\n"
            f'printf "%s " {name} "$@" | tr "\\n" " " >>calls; echo >>calls\n'
        )
    (tmp_path / "esc" / "meta").mkdir(parents=True)
    (tmp_path / "esc" / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-1-A-0.wav,1,0,dog,True,1,A\n2-2-A-0.wav,2,0,dog,True,2,A\n"
    )
    environment = {"PYTHONPATH": str(ROOT)}

    def run(*words):
        command = [recipe / "run_esc50.sh", "--esc50", tmp_path / "esc", *words]
        code, _, err = shell(*command, cwd=tmp_path, **environment)
        assert code == 0, err
        return (recipe / "calls").read_text().splitlines()

    return recipe, run


def test_each_fold_is_held_out_of_a_system_of_its_own(esc_recipe):
    recipe, run = esc_recipe
    best = recipe / "exp" / "mini_representation" / "valid.loss.best.pth"
    best.parent.mkdir(parents=True)
    best.touch()
    first, second = run()
    for number, call in ((1, first), (2, second)):
        assert call.startswith("slit.sh") and f"--fold {number} " in call
        assert f"--tag esc50_fold{number}" in call
        assert f"--audio_encoder_path downloads/esc50_fold{number}.pt" in call
        assert "--pretrained_model exp/mini_representation/valid.loss.best.pth" in call
    assert [call.split()[0] for call in run("--folds", "2")][2:] == ["slit.sh"]


def test_the_mini_system_is_trained_first_where_it_is_missing(esc_recipe):
    _, run = esc_recipe
    mini, fold = run("--folds", "2", "--expdir", "elsewhere")
    assert mini.startswith("run.sh") and "--stop_stage representation" in mini
    assert "--expdir elsewhere" in mini
    assert "elsewhere/mini_representation/valid.loss.best.pth" in fold


def test_esc_must_be_where_it_is_said_to_be(tmp_path):
    code, _, err = shell(RECIPE / "run_esc50.sh", "--esc50", tmp_path, cwd=tmp_path)
    assert code == 1 and "meta/esc50.csv: expected ESC-50's own layout" in err


# --------------------------------------------------------------------- released parts


@pytest.fixture
def own_data(tmp_path):
    """A copy of the recipe whose slit.sh notes its words, a table, folders of parts."""
    recipe = tmp_path / "egs2" / "slit" / "slit1"
    ignored = shutil.ignore_patterns("data", "dump", "exp", "downloads")
    shutil.copytree(RECIPE, recipe, ignore=ignored)
    text = (recipe / "slit.sh").read_text()
    options = text[text.index("# Options") :].split("# End of options")[0]
    (recipe / "slit.sh").write_text(
        f"#!/usr/bin/env bash\n{options}# End of options\n"
        'printf "%s " "$@" | tr "\\n" " " >>calls; echo >>calls\n'
    )
    (tmp_path / "my table.csv").write_text("audio,text\n")
    for name in ("whisper-tiny.en", "SmolLM2-135M-Instruct", "all-MiniLM-L6-v2"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model.safetensors").write_bytes(b"weights")
    card = tmp_path / "models" / "all-MiniLM-L6-v2" / "README.md"
    card.write_text("---\nlicense: apache-2.0\n---\n")

    def run(*words, script="run.sh", **variables):
        environment = {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf")}
        environment |= {"HF_HUB_OFFLINE": "1", **variables}
        result = shell(recipe / script, *words, cwd=tmp_path, **environment)
        calls = recipe / "calls"
        return *result, calls.read_text() if calls.exists() else ""

    return run


def test_own_data_is_trained_between_released_parts(own_data):
    words = ["--manifest", "my table.csv", "--parts", "models", "--stop_stage", "score"]
    code, out, err, call = own_data(*words)
    assert code == 0, err
    for expected in (
        "--config pretrained ",
        "--tag my_table ",
        "--audio_encoder hugging_face --audio_encoder_path ",
        "/models/whisper-tiny.en "
        "--audio_encoder_conf window_s=10.0 layer=concatenated pool=2 ",
        "/models/SmolLM2-135M-Instruct --qformer_tokenizer ",
        "/models/all-MiniLM-L6-v2 --tag my_table ",
        "--stop_stage score",
    ):
        assert expected in call
    assert "qformer: " in out and "licence apache-2.0" in out
    assert len(re.findall(r"0 MB, licence .*, sha256 [0-9a-f]{64}$", out, re.M)) == 3


def test_parts_of_the_user_come_first(own_data):
    words = ["--manifest", "my table.csv", "--language_model", "google/flan-t5-base"]
    words += ["--audio_encoder_path", "beats.pt", "--config", "flan_t5_base"]
    code, out, err, call = own_data(*words, "--qformer_tokenizer", "bert-base-uncased")
    assert code == 0 and out == "", err
    assert "--config flan_t5_base --audio_encoder_path beats.pt" in call
    assert "whisper" not in call and "--qformer_init" not in call


def test_parts_that_cannot_be_had_are_named_with_the_ways_out(own_data):
    code, _, err, call = own_data("--manifest", "my table.csv")
    assert code == 1 and call == ""
    assert "Error: audio_encoder openai/whisper-tiny.en cannot be had" in err
    for way in ("--parts DIR", "HF_ENDPOINT", "--parts mini"):
        assert way in err
    words = ["--manifest", "my table.csv", "--parts"]
    code, _, err, _ = own_data(*words, "none")
    assert code == 1 and "no folder none is there" in err
    code, _, err, _ = own_data(*words, "egs2")
    assert code == 1 and "expected a folder whisper-tiny.en in it, found: slit" in err


def test_mini_parts_for_own_data_come_with_a_warning(own_data, tmp_path):
    made = tmp_path / "egs2" / "slit" / "slit1" / "downloads" / "mini"
    (made / "language_model").mkdir(parents=True)
    (made / "audio_encoder.pt").touch()
    words = ["--manifest", "my table.csv", "--parts", "mini"]
    code, out, err, call = own_data(*words)
    assert code == 0, err
    assert "the sounds and the sentences of the mini corpus alone" in out
    assert "--config mini " in call and "--encoder_tag mini_beats" in call


def test_labelled_recordings_are_trained_between_released_parts(own_data, tmp_path):
    (tmp_path / "esc" / "meta").mkdir(parents=True)
    (tmp_path / "esc" / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-1-A-0.wav,1,0,dog,True,1,A\n2-2-A-0.wav,2,0,dog,True,2,A\n"
    )
    words = ["--esc50", "esc", "--parts", "models", "--nj", "1"]
    code, _, err, calls = own_data(*words, script="run_pretrained.sh")
    assert code == 0, err
    first, second = calls.splitlines()
    for number, call in ((1, first), (2, second)):
        assert f"--fold {number} --data_dir data/pretrained_fold{number}" in call
        assert "window_s=5.0" in call and "--encoder " not in call


@pytest.mark.parametrize("threads, idle, expected", [(2, 40, "4000"), (2, 20, "none")])
def test_threads_spin_where_cores_are_idle(tmp_path, threads, idle, expected):
    # "idle" jiffies in 0.2 s: 20 for each idle core
    (tmp_path / "stat").write_text("cpu  100 0 100 1000 50 0 0\ncpu0 1 1 1 1 1\n")
    (tmp_path / "later").write_text(f"cpu  110 0 110 {1000 + idle} 50 0 0\n")
    run = 'cd "$1"; sleep() { cp later stat; }; . "$0"; echo "${GOMP_SPINCOUNT-none}"'
    settings = {"OMP_NUM_THREADS": str(threads), "PROC_STAT": "stat"}
    script = str(RECIPE / "utils" / "spin.sh")
    code, out, err = shell("bash", "-c", run, script, str(tmp_path), **settings)
    assert (code, out, err) == (0, f"{expected}\n", "")
    # one thread waits for nobody; another system has no such file
    for name, value in (("OMP_NUM_THREADS", "1"), ("PROC_STAT", "absent")):
        other = {**settings, name: value}
        code, out, err = shell("bash", "-c", run, script, str(tmp_path), **other)
        assert (code, out, err) == (0, "none\n", "")
