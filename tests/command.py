"""The command line, called as a function."""
from aa_models.cli import main as cli


def run_command(capsys, *words):
    """Exit status, standard output and standard error of `aa-models WORDS`."""
    try:
        status = cli.main([str(word) for word in words])
    except SystemExit as exit:
        status = exit.code
    return status, *capsys.readouterr()
