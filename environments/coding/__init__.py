"""What the coding environments share: problems, graders, and the reading of completions. No environment is in here."""
