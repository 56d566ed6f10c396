"""Where documents come from and what in a row is one: files, folders, the hub; chats and tokens."""
