"""The command line, called as a function."""
from aa_models.cli import main as cli


def run_command(capsys, *words, main=cli.main):
    """Exit status, standard output and standard error of `aa-models WORDS`, or of another program."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as exit:
        status = exit.code
    return status, *capsys.readouterr()


def answered(capsys, *words, main=cli.main):
    """Standard output of a command that succeeds."""
    status, out, err = run_command(capsys, *words, main=main)
    assert status == 0, err
    return out


def refused(capsys, *words, main=cli.main):
    """The message of a command that refuses its arguments and prints nothing else."""
    status, out, err = run_command(capsys, *words, main=main)
    assert status == 2 and not out
    return err
