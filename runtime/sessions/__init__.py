"""One protocol for every engine; a session says which provider it really got."""
