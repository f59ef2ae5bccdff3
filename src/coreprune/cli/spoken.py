"""Messages of the library in the words of the command line, where arguments are options."""

from __future__ import annotations

import re

__all__ = ["spoken"]

_BUDGETS = "params|flops|bytes|latency|error|divergence|cosine|output_error"
#: what has no option, or is said another way → in words that have one; looked for in this order
_PHRASES = (
    (r"give a coreprune\.Gaussian or data=", "give --mean and --std"),
    (r"give a coreprune\.Gaussian", "give --mean and --std"),
    (r"a name, a coreprune\.Gaussian or another prior", "a name"),
    (r"give prior=Text\(tokenizer=\.\.\.\), or prior=", "put its tokenizer beside its weights, or give --prior "),
    (r"pass example_inputs: one batch as the model takes it", "give the shape of a batch: --input 1x3x224x224"),
    (r"example_inputs=, on the command line --input", "--input"),
    (r"pass one batch as the model takes it(, as a tensor, a tuple of arguments or a dict of keyword arguments)?,"
     r" on the command line its shape \(--input\)", "give the shape of a batch as the model takes it"),
    (r"give one batch as the network takes it, on the command line its shape \(--input\)",
     "give the shape of a batch as the network takes it: --input"),
    (r"\b(pass|give) (the )?example_inputs( as a dict of keyword arguments)?", "cut from Python with example_inputs"),
    (r"\bgive (inputs|data)=", r"call coreprune from Python with \1="),
    (r",? (or|and) data=", ""),
    (r"\bthe fresh instance", "MODEL"),
    (r"\bmake_model must make the dense architecture", "MODEL must be the network that was cut"),
    (r"\bask to leave '([^']*)' or more \(remove=([^)]*) at most\)", r"ask to leave \1 or more (--remove \2 at most)"),
    (r"\bexample_inputs of shape", "--input of shape"),
    (r"\bexample_inputs(?=( \[|$| and| do| hold| show))", "--input"),
    (r"\bwithout example_inputs", "without --input"),
    (r"\bforce=True", "--force"),
    (r"\bgive keep= a new or empty directory", "move it away"),
    (r"\bgive the same again, or keep= a new directory",
     "ask for the same again, or begin anew with --force, without --resume"),
    (r"\bworst=False", "--no-worst"),
    (r"\buniform=False", "--uneven"),
    (r"\bprior=Text\(path='([^']*)'[^)]*\)", r"--text \1"),
    (rf"(?<!--budget )(?<![\w.,-])({_BUDGETS})='([^']*)'", r"--budget \1=\2"),
    (rf"(?<!--budget )(?<![\w.,-])({_BUDGETS})=([^'\s,:;()]+)", r"--budget \1=\2"),
    (rf"(?<!--budget )(?<![\w.,-])({_BUDGETS})=(?=[\s,:;()])", r"--budget \1=X"),
)  # fmt: skip
#: arguments that are options of the same name
_OPTIONS = (
    "remove", "units", "budget", "draws", "method", "prior", "reweight", "ignore", "protect", "radius", "kinds",
    "round_to", "capture", "seed", "steps", "batch", "rate", "loss", "samples", "delta", "box",
    "runtimes", "std", "mean",
)  # fmt: skip


def spoken(message: str) -> str:
    """A message with options where it names arguments.

    Example:
        >>> spoken("remove=50.0 was asked: say one of remove= (a fraction), units= (exact widths) and budget=")
        '--remove 50.0 was asked: say one of --remove (a fraction), --units (exact widths) and --budget'
        >>> spoken("round_to=0 was asked: give capture='blocks'")
        '--round-to 0 was asked: give --capture blocks'
    """
    for pattern, words in _PHRASES:
        message = re.sub(pattern, words, message)

    def option(found: re.Match[str]) -> str:
        name, value = found.group(1).replace("_", "-"), found.group(2)
        return f"--{name}" + (f" {value.strip(chr(39))}" if value else "")

    return re.sub(rf"(?<![\w.-])({'|'.join(_OPTIONS)})=('[^']*'|[^\s,:;()]*)", option, message)
