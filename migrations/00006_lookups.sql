-- What a look-up of a batch reads is a granule here and a granule there: 256 ids of
-- 16 bytes. In blocks of their size it decompresses one granule and not sixteen, and
-- ids that are hashes do not get smaller by being compressed (docs/adr/0015). Parts
-- that are there keep their blocks until they are merged.
ALTER TABLE batches {{on}} MODIFY COLUMN batch_id UUID CODEC(NONE) SETTINGS (min_compress_block_size = 4096, max_compress_block_size = 4096);
