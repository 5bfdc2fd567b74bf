"""The console command `fulcrum`: dispatch only. Each command is a Hydra application, imported when it is called."""

import importlib
import re
import sys
from typing import Any

# command -> (primary configuration in conf/, module, function, what it does)
COMMANDS = {
    "train": ("config", "slurm.launcher", "train_command", "train one point or a sweep, and record it"),
    "plan": ("plan", "slurm.launcher", "plan_command", "show learning rate, batch size and steps; train nothing"),
    "theory": ("theory", "slurm.launcher", "theory_command", "exact risk of a plan on a problem with a known answer"),
    "data": ("prepare", "data.__main__", "command", "prepare text as token shards"),
    "fit": (
        "fit",
        "scaling.commands_fit",
        "fit_command",
        "fit a law to recorded runs or to a table (--list: the laws)",
    ),
    "predict": ("predict", "scaling.commands_fit", "predict_command", "what a fitted law predicts, with intervals"),
    "allocate": ("allocate", "scaling.commands_next", "allocate_command", "the best size and tokens for a budget"),
    "plan-next": ("plan_next", "scaling.commands_next", "plan_next_command", "the runs that would tell most"),
    "recommend": (
        "recommend",
        "scaling.commands_recommend",
        "recommend_command",
        "rate, batch, weight decay and ramp by fitted and published laws",
    ),
    "report": ("report", "scaling.commands", "report_command", "write the report of one or several experiments"),
    "runs": ("runs", "scaling.commands", "runs_command", "show the table of runs"),
    "runs add": ("runs_add", "scaling.commands", "add_command", "store a downstream error in the record of a run"),
    "slurm submit": (
        "submit",
        "slurm.launcher",
        "submit_command",
        "hand a sweep over to Slurm, and leave",
    ),
    "slurm": (None, "slurm.commands", "main", "status, resubmit, cancel, logs: what became of a sweep"),
    "export": ("export", "train.export", "export_command", "write a run's weights as transformers opens them"),
}

USAGE = """fulcrum - plan, train and fit families of language models

  fulcrum <command> [key=value ...]      `fulcrum <command> --help` explains each, with examples

{commands}

Examples
  fulcrum train -m experiment=quickstart          train a family of small models on this machine
  fulcrum slurm submit experiment=seesaw slurm=cpu    submit it to a cluster, and leave
  fulcrum plan ramp=seesaw total_tokens=3.3e9     what a batch ramp would save
  fulcrum report runs=runs/quickstart             their scaling law, with intervals and pictures
  fulcrum fit law=chinchilla runs=runs/quickstart
  fulcrum plan-next fit=runs/quickstart/fit.json budget=1e15
  fulcrum runs runs=runs/quickstart sort=eval_loss
"""


def main() -> None:
    commands = "\n".join(f"  {name:<14}{text}" for name, (*_, text) in COMMANDS.items())
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        print(USAGE.format(commands=commands), end="")
        sys.exit(0 if len(sys.argv) > 1 else 2)
    command = sys.argv.pop(1)
    if [command, *sys.argv[1:2]] in (["runs", "add"], ["slurm", "submit"]):
        command = f"{command} {sys.argv.pop(1)}"
    if command not in COMMANDS:
        print(f"fulcrum: no command {command!r}. There is:\n{commands}", file=sys.stderr)
        sys.exit(2)

    config_name, module, function, _ = COMMANDS[command]
    if config_name is None:
        getattr(importlib.import_module(module), function)(sys.argv[1:])
        return

    import hydra

    from conf.errors import user_errors

    if command == "fit" and "--list" in sys.argv:
        importlib.import_module("scaling.commands_fit").list_laws()
        return
    sys.argv = [f"{sys.argv[0]} {command}", *open_keys(command, sys.argv[1:])]

    def task(config: Any) -> None:
        with user_errors():
            getattr(importlib.import_module(module), function)(config)

    hydra.main(version_base="1.3", config_path="pkg://conf", config_name=config_name)(task)()


def open_keys(command: str, arguments: list[str]) -> list[str]:
    """The arguments with keys that no configuration can list, names of columns and parameters, as Hydra wants them; and
    with quotes where they hold overrides of their own."""
    if command in ("train", "plan", "theory", "data", "slurm submit"):
        from conf.branches import quoted

        return [quoted(text) for text in arguments]
    known = {
        "fit": r"(?!(columns|fixed|priors)\.)",
        "predict": r"(fit|table|level|out|hydra[./]\S*)=",
        "runs add": r"(run|runs|hydra[./]\S*)=",
    }.get(command)
    if known is None:
        return arguments
    branch = {"predict": "at.", "runs add": "added."}.get(command, "")
    key = re.compile(r"[A-Za-z_][\w.-]*=")
    return [f"++{branch}{text}" if key.match(text) and not re.match(known, text) else text for text in arguments]


if __name__ == "__main__":
    main()
