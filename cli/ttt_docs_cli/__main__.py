"""`python -m ttt_docs_cli`, for where the script `ttt-docs` is not on the path."""

from ttt_docs_cli.main import main

main()
