"""How commands and files reach the machine that submits: from here, or over SSH."""
