"""The command line. It parses, calls the library and shows what came back; nothing is computed here."""
