"""`qwenstack chat`: a conversation in the terminal, or one answer on standard output."""
