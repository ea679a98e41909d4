"""What changes numbers, network or caches is forwarded, a secret never; a value that a shell would read is refused."""

import string
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.plan.forward import KEEP_ALIVE, environment_file, forwarded, runner_environment, ssh_options
from launch.plan.words import LaunchFault, safe_path, safe_value


def test_what_ranks_need_is_forwarded():
    needed = {
        "OMP_NUM_THREADS": "4",
        "TOKENIZERS_PARALLELISM": "false",
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_SOCKET_IFNAME": "^lo,docker0",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "HF_HOME": "/data/hf",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    assert forwarded({**needed, "HOME": "/root", "PATH": "/bin", "LANG": "C", "CUDA_VISIBLE_DEVICES": "0"}) == needed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "hf_abc"),
        ("HF_TOKEN_PATH", "/root/token"),
        ("AWS_SECRET_ACCESS_KEY", "abc"),
        ("AWS_ACCESS_KEY_ID", "abc"),
        ("AWS_SESSION_TOKEN", "abc"),
        ("DUOFLOW_API_KEY", "abc"),
        ("NCCL_PASSWORD", "abc"),
        ("HF_ENDPOINT", "https://me:secret@mirror"),
        ("MLFLOW_TRACKING_TOKEN", "abc"),
        ("WANDB_API_KEY", "abc"),
    ],
)
def test_secrets_never_are(name: str, value: str):
    assert forwarded({name: value}) == {}


@pytest.mark.parametrize("value", ["$(id)", "`id`", "a;b", "a b", 'a"', "a\nB=1", "%h", "~", "a\\", "$HOME", "é", "a'"])
def test_values_that_a_shell_or_pdsh_reads_are_refused_by_name(value: str):
    with pytest.raises(LaunchFault, match=r"^NCCL_DEBUG: "):
        forwarded({"NCCL_DEBUG": value})


@given(st.text(max_size=40))
@settings(max_examples=300)
def test_a_value_that_passes_means_itself_between_double_quotes_and_without(value: str):
    try:
        safe_value("NAME", value)
    except LaunchFault:
        return
    assert set(value) <= set(string.ascii_letters + string.digits + "_@+=:,./^-")


def test_a_real_shell_leaves_every_safe_character_alone():
    value = safe_value("NAME", "A9_@+=:,./^-")
    script = f'export A={value}; export B="{value}"; printf "%s %s" "$A" "$B"; printf " %s" {value}'
    for shell in ("sh", "bash"):
        assert (
            subprocess.run([shell, "-c", script], capture_output=True, text=True).stdout == f"{value} {value} {value}"
        )


@given(st.text(max_size=40))
def test_paths_are_absolute_and_safe(path: str):
    try:
        safe_path("P", path)
    except LaunchFault:
        return
    assert path.startswith("/")
    assert set(path) <= set(string.ascii_letters + string.digits + "_@+=:,./-")


def test_the_runner_gets_nothing_that_it_would_export_by_itself():
    environment = {
        "PATH": "/bin",
        "PYTHONPATH": "/bad$(id)",
        "PYTHONSTARTUP": "x",
        "NCCL_DEBUG": "$(id)",
        "MLFLOW_TRACKING_TOKEN": "secret",
        "UCX_TLS": "a b",
        "WCOLL": "/hosts",
    }
    made = runner_environment(environment, {"PYTHONPATH": "/project", "NCCL_DEBUG": "INFO"}, "/runs/a/environment")
    assert made == {
        "PATH": "/bin",
        "PYTHONPATH": "/project",
        "DS_ENV_FILE": "/runs/a/environment",
        "PDSH_SSH_ARGS_APPEND": " ".join(KEEP_ALIVE),
    }


def test_deepspeed_exports_what_the_file_says_and_nothing_else(tmp_path, monkeypatch):
    """The real runner, with files lying around that it would read; pdsh is one that shows its words."""
    runner = pytest.importorskip("deepspeed.launcher.runner")
    (tmp_path / ".deepspeed_env").write_text("EVIL=1\n")
    file = tmp_path / "environment"
    file.write_text(environment_file({"OMP_NUM_THREADS": "2", "PYTHONPATH": "", "PYTHONSAFEPATH": "1"}))
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    (tmp_path / "pdsh").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words\n')
    (tmp_path / "pdsh").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "MLFLOW_X": "$(id)", "NCCL_X": "`id`"}
    made = runner_environment(environment, {"PYTHONSAFEPATH": "1"}, str(file))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner.os, "environ", runner.os.environ.copy())
    for name in list(runner.os.environ):
        monkeypatch.delenv(name, raising=False)
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runner, "DEEPSPEED_ENVIRONMENT_NAME", made["DS_ENV_FILE"])
    monkeypatch.setattr(runner.signal, "signal", lambda *_: None)
    where = ["--hostfile", "hosts", "--no_ssh_check", "--force_multi", "--master_addr=10.0.0.1"]
    runner.main([*where, "--module", "m", "/c"])
    exports = next(word for word in (tmp_path / "words").read_text().splitlines() if "export" in word)
    assert sorted(filter(None, exports.split("; "))) == [
        "export OMP_NUM_THREADS=2",
        "export PYTHONPATH=",
        "export PYTHONSAFEPATH=1",
    ]


def test_the_users_ssh_options_come_first_because_ssh_takes_the_first():
    assert ssh_options({"PDSH_SSH_ARGS_APPEND": "-F cfg -o ConnectTimeout=3"})[:4] == [
        *("-F", "cfg", "-o", "ConnectTimeout=3"),
    ]


def test_quotes_in_ssh_options_are_refused_because_pdsh_reads_none():
    with pytest.raises(LaunchFault, match=r"^PDSH_SSH_ARGS_APPEND: "):
        ssh_options({"PDSH_SSH_ARGS_APPEND": "-o 'ProxyCommand=a b'"})
