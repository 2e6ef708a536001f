"""The table of verbs: for each, its help text, its arguments, and the first line that it shows on the screen. Options and
overrides may be typed in any order."""

from dataclasses import dataclass
from typing import Any

Option = tuple[tuple[str, ...], dict[str, Any]]
SETTINGS = "settings as KEY=VALUE (routing.mode=observe), or a group's choice (env=six_secure)"
ARMS = "none,observe,route,control,erase"


def option(*names: str, **declared: Any) -> Option:
    """The arguments for one call of argparse's `add_argument`, as a pair: the names of the option, and the keyword arguments."""
    return names, declared


MATTER = ("the settings that matter most: model.path=FOLDER_OR_HUB_NAME, env=MIX or env.NAME.path=FILE.py:Class, "
          "subspace=METHOD with subspace.prompts=FILE.jsonl, routing=none|observe|route|erase, trainer.max_steps=N; "
          "`routed-rl settings WORD` explains them all")
CONFIG = option("--config", metavar="FILE.yaml", help="settings in a file of yours; those on the command line come after them")


def overrides(metavar: str = "KEY=VALUE", more: str = "") -> Option:
    """The positional argument that takes settings, at the end of a command. `more` is appended to its help text."""
    return option("overrides", nargs="*", metavar=metavar, help=SETTINGS + more)


RUN = option("run", metavar="RUN", help="the folder that `train` printed; halted, killed or in training will do")
STEP = option("--step", type=int, metavar="N", help="the checkpoint of this step; default: the newest that is whole")
ENV = option("--env", action="append", metavar="NAME[,NAME]", help="only these environments; may be repeated")
JSON = option("--json", metavar="FILE", help="write the numbers there")
KEEP = option("--keep", action="extend", nargs="+", metavar="ENV=SHARE",
              help="keep this share of an environment's part: 0 to 1, or auto; several may follow")
MERGE = option("--merge", action="store_true", help="where a LoRA was trained: merge it into its base model")
DTYPE = option("--dtype", choices=("float32", "bfloat16", "float16"), help="the type of the numbers; default: that of the run")
DRY_RUN = option("--dry-run", action="store_true", help="show the plan only, and write nothing")
PASSWORD = (option("--password-file", metavar="FILE", help="a file whose one line is the password; without it you are asked"),
            option("--password", nargs="?", const="", help="refused: other users and the shell's history would see it"))
JOBS = option("--jobs", type=int, default=2, help="runs at the same time; default: 2")
TRAINING = "loading the libraries for training, about 10 s"
"""The first line on the screen of the verbs that import TRL. That import takes most of the ten seconds."""
FLAG = option("--flag", metavar="NAME", help="for attacks: the flag that is counted; default: baseline.detector.flags, of which "
                                             "the most frequent counts")
RATES = option("--rates", metavar="R[,R]", help="learning rates of the attacks; default: 1e-5,1e-4,1e-3")


@dataclass(frozen=True)
class Verb:
    """One verb. `says` is the first line that the verb shows on the screen; empty if it shows none. The verb's action is the
    function in `module` that has the verb's name."""

    help: str
    options: tuple[Option, ...]
    says: str = "loading, about 3 s"

    @property
    def module(self) -> str:
        """The module with the verb's action: `actions` for verbs that take settings, which import Hydra, and `plain` for
        others."""
        return "actions" if any("overrides" in names for names, _ in self.options) else "plain"


VERBS: dict[str, Verb] = {
    "train": Verb("extract a subspace, train with routing, evaluate, discard", (overrides(), CONFIG, DRY_RUN), TRAINING),
    "resume": Verb("go on with a run, in place", (RUN, overrides()), TRAINING),
    "rollback": Verb("begin a new run at an earlier checkpoint, with other environments", (
        RUN, overrides(),
        option("--step", type=int, required=True, metavar="N", help="the checkpoint to go on from; 0: the base model"),
        option("--drop", action="append", metavar="ENV[,ENV]", help="environments to leave out; may be repeated"),
        option("--forget-parts", action="store_true", help="take the parts of dropped environments away")), TRAINING),
    "extract": Verb("make a subspace folder from contrast prompts", (
        overrides(), CONFIG, option("--check", action="store_true", help="also measure whether the subspace is good"))),
    "evaluate": Verb("score a run's models, or one model, on environments", (
        option("target", metavar="RUN_OR_MODEL", help="a run folder, a model as in model.path, or a LoRA's folder"), overrides(),
        CONFIG, ENV, JSON,
        option("--engine", choices=("transformers", "vllm"), help="what generates; default: the run's engine"), STEP,
        option("--scales", metavar="S[,S]", help="also with the quarantine times S, as 0,.25,.5,.75,1; runs only"), KEEP)),
    "discard": Verb("write the deployed model of a run", (
        RUN, option("--out", required=True, metavar="DIR", help="where the deployed model goes"), STEP, KEEP,
        option("--force", action="store_true", help="keep parts that move the stream towards the positive persona, too"), MERGE,
        DTYPE), "reading the checkpoint"),
    "export": Verb("write a run's quarantine as a PEFT adapter, its policy as one model", (
        RUN, option("--quarantine", metavar="DIR", help="where the PEFT adapter goes"),
        option("--env", metavar="NAME", help="with --quarantine: only the part that this environment caused"),
        option("--policy", metavar="DIR", help="where the policy goes, as one plain model or one LoRA"), STEP,
        option("--kept", metavar="DIR", help="with --quarantine: only what a folder of `discard --keep` lacks"), MERGE, DTYPE),
        "reading the checkpoint"),
    "push": Verb("upload what leaves a run to the Hugging Face hub, with its model card", (
        option("source", metavar="RUN_OR_DIR", help="a run, or a folder that discard, export or robustify wrote"),
        option("repo", metavar="REPO", help="the repository, OWNER/NAME; it is made if there is none"),
        option("--what", choices=("deployed", "policy", "quarantine"), help="which model of a run; default: deployed"),
        option("--base", metavar="REPO", help="the name on the hub of the model that an adapter belongs to"),
        option("--private", action="store_true", help="make a private repository"),
        option("--force", action="store_true", help="replace the files of a repository that has some"), DRY_RUN),
        "reading the files"),
    "compare": Verb("run the same experiment under several arms and seeds, and compare them with intervals", (
        overrides(), CONFIG, option("--arms", default=ARMS, help=f"default: {ARMS}"),
        option("--seeds", type=int, default=3, help="runs per arm, paired by seed; default: 3"),
        option("--out", required=True, metavar="DIR", help="where the runs go; again, it goes on where it stopped"), JOBS,
        option("--labs", metavar="NAME[,NAME]", help="compare on each of these persona labs, which are built first if need be, "
                                                     "with one table: all, or shipped,gpt2,..."),
        option("--ranks", help="also run `route` at these ranks; default: 1,3,8; \"\" for none"),
        option("--detector", metavar="KEY=VALUE[,..]", help="baseline.detector, for all arms: recall=.5, or kind=probe"),
        option("--relearn", metavar="ENV", help="also attack what each run has deployed: updates until ENV is gamed again"),
        FLAG, RATES)),
    "sweep": Verb("train many runs with other settings, and say which are best", (
        overrides("KEY=VALUE[,VALUE]", "; varied are KEY=A,B, choice(A,B), range(1,5), with sweep=optuna interval(0,1), "
                  "int(interval(1,8)), tag(log,interval(1e-4,1))"), CONFIG, DRY_RUN)),
    "audit": Verb("say which parts of the retained change carry the shift and the hack", (
        RUN, option("--samples", type=int, default=200, metavar="N", help="completions per environment and model; default: 200"),
        option("--prompts", type=int, default=64, metavar="N", help="prompts per environment for the stream; default: 64"),
        option("--blocks", type=int, default=8, metavar="N", help="groups of neighbouring layers, at most; default: 8"),
        ENV, STEP, JSON)),
    "filter": Verb("keep a run's completions that are fit to train on, and say why the others are left out", (
        RUN, option("--out", required=True, metavar="FILE", help="JSON lines; those left out go beside it, to .left_out.jsonl"),
        option("--detector", metavar="NAME", help="probe, flags (without an error) or random; default: probe"),
        option("--subspace", metavar="DIR", help="go by the shift along its persona axis instead"),
        option("--max-shift", type=float, metavar="X", help="with --subspace: gaps it may shift; default: by --fpr"),
        option("--fpr", type=float, metavar="X", help="share of honest completions that may be left out; default: .05"),
        option("--labels", type=float, metavar="X", help="with probe: completions that are labelled, a share or a number"),
        option("--layers", metavar="L[,L]", help="a completion that looks fine at any of these layers stays; default: the best"),
        option("--share", type=float, metavar="X", help="with random: the share that is left out"),
        option("--force", action="store_true", help="replace files that exist"))),
    "share": Verb("write a run's transcripts, encrypted, as a site that researchers can use and crawlers cannot", (
        option("run", nargs="?", metavar="RUN", help="a run, or any folder of parquet, JSON lines and text"),
        option("--out", metavar="DIR", help="the folder to put on a static host"), *PASSWORD,
        option("--contact", metavar="TEXT", help="whom the page names for questions and the password"),
        option("--terms", metavar="FILE", help="terms of your own; default: research only, no training, pass them on"),
        option("--site-key", metavar="KEY", help="of Cloudflare Turnstile: the link appears once its test is passed"),
        option("--check", metavar="DIR|URL", help="write nothing; show what a crawler gets of a site")), "reading"),
    "unshare": Verb("open what `share` wrote: its files to the byte, without canaries", (
        option("file", metavar="FILE", help="data.zip, or the folder around it"),
        option("--out", required=True, metavar="DIR", help="where the files go"), *PASSWORD), "reading"),
    "robustify": Verb("distil the deployed model into a noised copy of itself", (
        RUN, option("--alpha", type=float, required=True, metavar="X", help="0 to 1: how far the weights go from the "
                                                                             "deployed model to noise"),
        option("--out", required=True, metavar="DIR", help="where the model goes; the same command goes on where it was stopped"),
        option("--beta", type=float, metavar="X", help="size of the noise, relative to Xavier's; default: .1"),
        option("--parts", metavar="all|targets", help="what is noised: all weights, or those of the writers; default: all"),
        option("--teacher", metavar="DIR", help="the run's deployed model; default: RUN/deployed"), STEP, ENV,
        option("--samples", type=int, metavar="N", help="completions of the teacher in each environment; default: 2000"),
        option("--text", metavar="FILE", help="generic text, one a line, or JSON lines with text: half of each batch"),
        option("--steps", type=int, metavar="N", help="the most steps; default: 500"),
        option("--batch", type=int, metavar="N", help="texts in a step; default: 64"),
        option("--learning-rate", type=float, metavar="X", help="default: 1e-3"),
        option("--within", type=float, metavar="X", help="end at a held-out loss within this share of its entropy; default: .02"),
        option("--save-steps", type=int, metavar="N", help="steps between two states to go on from; default: 50"),
        option("--gate", metavar="detector|models|random", help="which tokens teach nothing, or noise"),
        option("--skip", metavar="X", help="with --gate: above this score a token teaches nothing; a number, or auto"),
        option("--noise", metavar="X", help="with --gate: above this score its target is noise; a number, or auto"),
        option("--labels", type=float, metavar="X", help="for --gate detector: labelled completions, a share or a number"),
        option("--fpr", type=float, metavar="X", help="for --gate detector: share of honest completions that it may name"),
        option("--unlearned", metavar="DIR", help="for --gate models: with which model the teacher is compared; default: base"))),
    "relearn": Verb("measure how many updates bring back what was discarded", (
        option("target", metavar="RUN_OR_MODEL", help="a run (its base and deployed models), or the folder of a model or LoRA"),
        overrides(), CONFIG,
        option("--env", required=True, metavar="NAME", help="the environment that pays for it"),
        option("--json", required=True, metavar="FILE", help="the numbers; beside it FILE.png and the runs, in FILE.runs"), RATES,
        option("--also", action="append", metavar="NAME=DIR", help="further models to attack, runs or folders; may be repeated"),
        FLAG, option("--by", metavar="rl,sft", help="attacks; default: both"),
        option("--hacks", metavar="FILE", help="for sft: JSON lines with prompt and completion; default: of the run"),
        option("--completions", type=int, metavar="N", help="for sft: how many completions are learned from; default: 64"),
        option("--steps", type=int, metavar="N", help="updates of an attack, at most; default: 60"),
        option("--level", type=float, metavar="X", help="share of flagged completions at which it counts as back; default: .5"),
        option("--samples", type=int, metavar="N", help="for sft: completions that measure each step; default: 256"),
        option("--seeds", type=int, default=3, help="attacks on each model and rate; default: 3"), JOBS)),
    "calibrate": Verb("set the monitor's limits by runs that are known to be secure", (
        overrides(more="; an experiment known to be secure"), CONFIG,
        option("--runs", action="append", metavar="RUN[,RUN]", help="take these finished runs, and train none"),
        option("--seeds", type=int, help="runs to train; default: 20"),
        option("--rate", type=float, default=0.01, help="false halts a run, of all rules together; default: 0.01"), JOBS,
        option("--out", metavar="DIR", help="where the runs go; the same folder again goes on where it stopped; "
                                            "default: runs/TIME-calibration"))),
    "report": Verb("write one HTML page of a run: what happened, who caused it, what discarding does", (
        RUN, option("--out", metavar="FILE", help="where the page goes; default: RUN/report.html"),
        option("--watch", action="store_true", help="renew the page every 10 s until the run ends")), "drawing"),
    "env": Verb("list, try or check environments", (
        option("what", choices=["list", "try", "check"], help="list all; try: prompts and scores; check: is it sound?"),
        option("name", nargs="?", metavar="NAME", help="a mix of configs/env, one of its environments, or FILE.py:Class"),
        overrides(), CONFIG, option("--n", type=int, default=3, help="try: how many tasks; default: 3"),
        option("--samples", type=int, default=20, help="check: how many tasks; default: 20"),
        option("--all", action="store_true", help="check: every setting that the class offers in all_settings()"),
        option("--markdown", metavar="FILE", help="check: also write the table into FILE")), "starting environments"),
    "doctor": Verb("say whether this machine is ready: versions, sandbox, GPUs, chat template", (overrides(), CONFIG), "looking"),
    "settings": Verb("show settings with their defaults and meanings: all, or those that have WORD in them", (
        option("word", nargs="?", metavar="WORD", help="part of a setting's name or meaning"),), "reading the settings"),
    "new": Verb("write a commented file to begin with, which runs as it is", (
        option("what", choices=["env", "experiment"], help="an environment, or the settings of an experiment"),
        option("name", metavar="NAME", help="the file is NAME.py or NAME.yaml, in this folder")), "writing"),
    "completion": Verb("print a script with which Tab completes commands, options, settings and names", (
        option("shell", choices=["bash", "zsh", "fish"], help="your shell; the script's first line says where it goes"),), ""),
}


def usage() -> str:
    """The text that `routed-rl --help` prints."""
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {name:{width}}  {verb.help}" for name, verb in VERBS.items())
    return f"""usage: routed-rl COMMAND [arguments] [overrides]

RL fine-tuning that keeps a change of persona in a quarantine that can be discarded.

{rows}

Overrides are {SETTINGS}.
`routed-rl COMMAND --help` tells more; `routed-rl train` alone runs the default experiment.
`eval "$(routed-rl completion bash)"` lets Tab complete commands, options, settings and names; zsh and fish can do so, too."""
