"""Records in, forecasts and dead letters out. Knows neither Kafka nor the clock."""
