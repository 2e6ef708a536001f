"""Shared by the coding environments: problems, graders, and reading programs from completions. No environment is in here."""
