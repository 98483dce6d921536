"""How the embedded models were made, runnable again."""
