"""One run on several devices: who they are, what they tell each other, and what they do together."""
