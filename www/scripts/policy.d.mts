export const META_POLICY: string;
export const HEADERS: Record<string, string>;
export const WORKER_POLICY: string;
