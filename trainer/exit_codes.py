"""Every exit code of `duoflow`, in one list: what `--help` and docs/commands.md show."""

DONE, FAILED, USER_MISTAKE, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130
"""75 is EX_TEMPFAIL: a signal stopped the run after saving, and the same command goes on. 130 is what a shell reports
for a process that Ctrl-C ended."""

EXIT_CODES = {
    DONE: "done; also where nothing was left to do",
    FAILED: "a fault that is not yours: a rank that died, a run that `stop` could not end, figures that disagree",
    USER_MISTAKE: "your mistake, or a disk that is full: a line on stderr says which, and nothing was started",
    STOPPED: "stopped by a signal after saving: run the same command again",
    INTERRUPTED: "interrupted by Ctrl-C where there was nothing to save",
}
"""Those that a run leaves stand in its status.json too; `attach` returns that of the run."""
