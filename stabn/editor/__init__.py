"""The web page where people correct temporal attention: server, state in the round's object storage, static files."""
