"""What the lab's studies share: pieces of work that are kept, and findings that say no more than they know."""
