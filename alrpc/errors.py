"""The one exception whose message is meant for the user, not for a developer."""


class UserError(Exception):
    """Something the user can put right. Its message is one line: the field or file, what was wrong, what would be right."""
