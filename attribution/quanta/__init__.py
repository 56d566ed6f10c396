"""What is known of quanta: facts, labels, codes, how they meet, how often they are used, and the evidence for them."""
