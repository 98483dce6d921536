"""From prompts to pictures, with and without LoRAs."""
