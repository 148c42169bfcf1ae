"""parvae_pipeline: from Parquet to a trained variational autoencoder."""
