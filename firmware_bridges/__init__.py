"""Device firmwares: pure decoders (bytes to Reading) and thin asyncio clients."""
