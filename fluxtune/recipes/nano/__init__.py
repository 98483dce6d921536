"""The recipe of the embedded model: painted pictures → VAE → text encoders → transformer → guidance → folder."""
