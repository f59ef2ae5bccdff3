"""Where the law of the units comes from. A prior is one file: it says its name, and gives a law site by site."""
