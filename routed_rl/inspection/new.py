"""The verb `routed-rl new`: writes a commented file that runs as it is, as a start for an environment or an experiment."""

import importlib.util
import re
import sys
from pathlib import Path

from routed_rl import console
from routed_rl.artifacts import write_text
from routed_rl.errors import ConfigError, command

TAKEN = ("task", "score", "none", "null", "true", "false")
"""Names that Python, YAML or the templates use themselves."""
TEMPLATES = Path(__file__).parent / "templates"


def write_new(what: str, name: str) -> Path:
    """Write the file NAME.py (`what` is "env") or NAME.yaml ("experiment") into the current folder, print what to do next, and
    return the path of the file. ConfigError for a name that Python or a shell would not accept, and for a file that exists."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"new {what} {name}: take a name of small letters, digits and underscores, such as my_{what}")
    if name in TAKEN:
        raise ConfigError(f"new {what} {name}: this name means something else in the file that would be written; take another "
                          f"one, such as my_{name}")
    words = {"NAME": name, "CLASS": "".join(part.capitalize() for part in name.split("_"))}
    file = Path(f"{name}.py" if what == "env" else f"{name}.yaml")
    if file.exists():
        raise ConfigError(f"{file} exists; take another name, or move it away")
    if what == "env" and (name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None):
        raise ConfigError(f"new env {name}: Python would find {file} in place of the library {name}; take another one, such as "
                          f"my_{name}")
    text = (TEMPLATES / f"{what}.txt").read_text()
    for word, value in words.items():
        text = text.replace(f"<{word}>", value)
    write_text(file, text)
    place = f"{file}:{words['CLASS']}"
    following = [("env", "try", place), ("env", "check", place), ("train", "env=empty", f"env.{name}.path={place}")
                 ] if what == "env" else [("train", "--config", file, "--dry-run"), ("train", "--config", file)]
    for line in [f"written: {file}", "next:", *(f"  {command(*each)}" for each in following)]:
        console.say(line)
    return file
