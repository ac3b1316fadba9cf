from gradsurgery.cli.main import run

run()
