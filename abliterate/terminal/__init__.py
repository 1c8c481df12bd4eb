"""What people see on a terminal: progress, plain lines, others' words made harmless."""
