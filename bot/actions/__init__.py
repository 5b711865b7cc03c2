"""What the workflows call: `awq-bot actions …`, its pages, its memory of failures, and what legs hand on."""
